//! `luthier slice MODEL OUT --ffn LIST | --layers N --dims D`: one of the models that a nested model holds, as a plain
//! checkpoint.
//!
//! MatFormer (arXiv:2310.07707): a sub-model has the first neurons of each feed-forward block: the first rows of gate and up,
//! the first columns of down; a list gives every layer a width of its own (Mix'n'Match), and layers may be left out. Starbucks
//! (arXiv:2410.13230), 2D Matryoshka: a sub-model has the first layers, and its embedding of a text is the first coordinates of
//! the pooled states. Those states are as wide as before, for each reads all channels (a norm over fewer would give other
//! values), so that the layers stay whole; the cut stands behind the pooling, as sentence-transformers' `Dense` module with
//! the first rows of the identity, which every reader of such folders applies. Where the model has modules of its own
//! (modules.json), pooling and normalising are as there; else the mean over all tokens. Reads a folder or a GGUF file, writes a
//! folder, or a GGUF file where OUT ends in `.gguf`. Guarantees: every tensor is in the ledger; full sizes give the same bytes;
//! config.json shows the new shape, in `per_layer_config` where layers differ. Refuses: widths beyond the model, lists of
//! another length, what the config cannot say. Example: `luthier slice nested small --table configs.csv --name E2B`.

use std::path::Path;

use luthier_arch::sizes::{HeadSizes, ModelSizes, StackSizes};
use luthier_checkpoint::gguf::is_gguf_name;
use luthier_checkpoint::layout::{Layout, Part, Projection, Role};
use luthier_checkpoint::{Dtype, SideFile};
use serde_json::{Map, Value, json};

use super::keep::{HeadKeep, LayerKeep, StackKeep};
use super::prepare::Prepared;
pub use super::table::{Row, list, row};
use super::{Record, Report};
use crate::plan::Plan;
use crate::{Error, Input, Result};

const LEFT_OUT: &str = "its layer is not part of this sub-model";

/// Which sub-model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Neurons of every feed-forward block: one number for all, or one for every layer that stays (or for every layer that
    /// there is), the encoder's first.
    pub ffn: Option<Vec<usize>>,
    /// The first layers: one number for every stack, or one for the encoder and one for the decoder.
    pub layers: Option<Vec<usize>>,
    /// Numbers of layers that are left out, counted through all stacks.
    pub skipped: Vec<usize>,
    /// How many layers are to be left, where a table says it.
    pub n_layers: Option<usize>,
    /// Coordinates of a text's embedding.
    pub dims: Option<usize>,
    /// The type of all float weights; none keeps them.
    pub dtype: Option<Dtype>,
    /// Whether an existing output is replaced.
    pub force: bool,
}

impl Options {
    fn recipe(&self, model: &str) -> Value {
        json!({
            "model": model,
            "ffn": self.ffn,
            "layers": self.layers,
            "skip": (!self.skipped.is_empty()).then_some(&self.skipped),
            "dims": self.dims,
            "dtype": self.dtype.map(Dtype::name),
        })
    }
}

/// What `run` would write, from headers alone.
pub fn plan(input: &Input, out: &Path, options: &Options) -> Result<Plan> {
    super::planned(&prepared(input, out, options)?, out)
}

/// Writes the sub-model to `out`.
pub fn run(input: &Input, out: &Path, options: &Options) -> Result<Report> {
    let recipe = options.recipe(&input.label);
    let record = Record { verb: "slice", recipe, seed: None, measurements: Map::new() };
    super::write(&prepared(input, out, options)?, input, out, options.force, record)
}

fn prepared(input: &Input, out: &Path, options: &Options) -> Result<Prepared> {
    let cut = super::Options { dtype: options.dtype, force: options.force, ..super::Options::default() };
    let mut width = 0;
    let mut prepared = Prepared::kept(input, &cut, LEFT_OUT, |layout, sizes| {
        // What is embedded are the states of the first stack: an encoder's where there is one.
        width = sizes.stacks.first().map_or(0, |stack| stack.width);
        keeps(layout, sizes, options)
    })?;
    if let Some(dims) = options.dims {
        if dims == 0 || dims > width {
            return Err(Error::Use(format!(
                "--dims {dims}: wanted from 1 to the {width} coordinates that there are"
            )));
        }
        if is_gguf_name(out) {
            return Err(Error::Use(format!(
                "--dims {dims}: a GGUF file has no place for fewer coordinates than the model's width; write a folder"
            )));
        }
        let place = &input.checkpoint.place;
        let folder = if place.is_dir() { Some(place.as_path()) } else { None };
        prepared.add_side_files(modules(folder, width, dims)?);
        prepared.notes.push(format!(
            "embeddings of texts have the first {dims} of {width} coordinates: modules.json says so to sentence-transformers"
        ));
    }
    Ok(prepared)
}

/// What is kept of every stack.
fn keeps(layout: &Layout, sizes: &ModelSizes, options: &Options) -> Result<Vec<StackKeep>> {
    let total: usize = sizes.stacks.iter().map(|stack| stack.layers.len()).sum();
    if let Some(wrong) = options.skipped.iter().find(|layer| **layer >= total) {
        return Err(Error::Use(format!(
            "layer {wrong} cannot be left out: the model has layers 0 to {}",
            total - 1
        )));
    }
    let stays = stays(sizes, options)?;
    let n_left = stays.iter().flatten().filter(|stays| **stays).count();
    if let Some(wanted) = options.n_layers.filter(|wanted| *wanted != n_left) {
        return Err(Error::Use(format!(
            "the table's row has {wanted} layers, and of this model's {total} there would stay {n_left}; it is for another model"
        )));
    }
    let widths = widths(options, total, n_left)?;
    let (mut keeps, mut number, mut nth_left) = (Vec::new(), 0, 0);
    for (stack, stays) in sizes.stacks.iter().zip(&stays) {
        let mut layers = Vec::new();
        for (layer, stays) in stays.iter().enumerate() {
            if *stays {
                let width = widths
                    .as_ref()
                    .map(|widths| widths[if widths.len() == total { number } else { nth_left }]);
                layers.push(layer_keep(layout, stack, layer, width)?);
                nth_left += 1;
            }
            number += 1;
        }
        if layers.is_empty() {
            return Err(Error::Use("every layer of a stack would be left out; wanted 1 or more".to_string()));
        }
        keeps.push(StackKeep {
            kind: stack.kind,
            width: stack.width,
            channels: (0..stack.width).collect(),
            layers,
        });
    }
    Ok(keeps)
}

/// Stack by stack, whether each layer stays.
fn stays(sizes: &ModelSizes, options: &Options) -> Result<Vec<Vec<bool>>> {
    let n_stacks = sizes.stacks.len();
    let mut before = 0;
    let mut all = Vec::new();
    for (at, stack) in sizes.stacks.iter().enumerate() {
        let n_layers = stack.layers.len();
        let first = match options.layers.as_deref() {
            None => n_layers,
            Some([first]) => *first,
            Some(firsts) if firsts.len() == n_stacks => firsts[at],
            Some(firsts) => {
                let what = format!(
                    "--layers: wanted one number, or one for each of {n_stacks} stacks, came {firsts:?}"
                );
                return Err(Error::Use(what));
            }
        };
        if first == 0 || first > n_layers {
            return Err(Error::Use(format!(
                "--layers {first}: wanted from 1 to the {n_layers} that there are"
            )));
        }
        let stays = |layer: usize| layer < first && !options.skipped.contains(&(before + layer));
        all.push((0..n_layers).map(stays).collect());
        before += n_layers;
    }
    Ok(all)
}

/// A width for every layer, of those that stay or of all.
fn widths(options: &Options, total: usize, n_left: usize) -> Result<Option<Vec<usize>>> {
    let Some(asked) = &options.ffn else { return Ok(None) };
    match asked.len() {
        1 => Ok(Some(vec![asked[0]; n_left])),
        n if n == total || n == n_left => Ok(Some(asked.clone())),
        n => {
            let what = match n_left == total {
                true => format!("one for each of the {total} layers"),
                false => {
                    format!("one for each of the {n_left} layers that stay, or of the {total} that there are")
                }
            };
            Err(Error::Use(format!("--ffn: wanted one width, or {what}; came {n}")))
        }
    }
}

fn layer_keep(layout: &Layout, stack: &StackSizes, layer: usize, width: Option<usize>) -> Result<LayerKeep> {
    let sizes = &stack.layers[layer];
    let neurons = match (sizes.inner, width) {
        (Some(inner), Some(width)) if width == 0 || width > inner => {
            return Err(Error::Use(format!(
                "--ffn {width}: wanted from 1 to the {inner} neurons that layer {layer} has"
            )));
        }
        (Some(inner), width) => Some((0..width.unwrap_or(inner)).collect()),
        (None, _) => None,
    };
    let whole = |heads: HeadSizes| HeadKeep {
        query: (0..heads.query).collect(),
        kv: (0..heads.kv).collect(),
        width: heads.width,
    };
    // Cross-attention has heads also where self-attention is skipped.
    let heads = sizes.heads.or_else(|| stack.layers.iter().find_map(|layer| layer.heads));
    let of = |part: Part| {
        let stands = layout.at(Role { stack: stack.kind, layer: Some(layer), part }).is_some();
        heads.filter(|_| stands).map(whole)
    };
    Ok(LayerKeep {
        before: layer,
        window: sizes.window,
        neurons,
        experts: sizes.experts.map(|experts| (0..experts).collect()),
        own: of(Part::SelfAttention(Projection::Output)),
        cross: of(Part::CrossAttention(Projection::Output)),
    })
}

/// sentence-transformers' files for a model whose pooled states are cut to their first coordinates.
fn modules(folder: Option<&Path>, width: usize, dims: usize) -> Result<Vec<SideFile>> {
    let read = |name: &str| -> Result<Option<Value>> {
        let Some(path) = folder.map(|folder| folder.join(name)).filter(|path| path.is_file()) else {
            return Ok(None);
        };
        let parsed = std::fs::read(&path).map_err(|problem| problem.to_string()).and_then(|bytes| {
            serde_json::from_slice(&bytes).map_err(|problem| format!("wanted JSON: {problem}"))
        });
        parsed.map(Some).map_err(|problem| Error::Use(format!("{}: {problem}", path.display())))
    };
    let kind = |module: &Value| {
        let name = module.get("type").and_then(Value::as_str).unwrap_or_default();
        name.rsplit('.').next().unwrap_or_default().to_string()
    };
    let list = read("modules.json")?.and_then(|list| list.as_array().cloned()).unwrap_or_default();
    if let Some(other) =
        list.iter().map(kind).find(|kind| !["Transformer", "Pooling", "Normalize"].contains(&kind.as_str()))
    {
        return Err(Error::Use(format!(
            "--dims {dims}: modules.json has a module {other} behind the model; wanted a model whose pooled states are its \
             embeddings (slice its parent)"
        )));
    }
    let pooling = list.iter().find(|module| kind(module) == "Pooling").and_then(|module| module.get("path"));
    let pooling = match pooling.and_then(Value::as_str) {
        Some(path) => read(&format!("{path}/config.json"))?,
        None => None,
    };
    let pooling = pooling.unwrap_or_else(|| {
        json!({
            "word_embedding_dimension": width, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true,
            "pooling_mode_max_tokens": false, "pooling_mode_mean_sqrt_len_tokens": false
        })
    });
    let module = |at: usize, path: &str, kind: &str| json!({"idx": at, "name": at.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}")});
    let mut modules =
        vec![module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling"), module(2, "2_Dense", "Dense")];
    if list.iter().any(|module| kind(module) == "Normalize") {
        modules.push(module(3, "3_Normalize", "Normalize"));
    }
    let dense = json!({
        "in_features": width, "out_features": dims, "bias": false,
        "activation_function": "torch.nn.modules.linear.Identity"
    });
    let text = |value: &Value| luthier_checkpoint::json::to_text(value).into_bytes();
    let mut files = vec![
        ("modules.json", text(&Value::Array(modules))),
        ("1_Pooling/config.json", text(&pooling)),
        ("2_Dense/config.json", text(&dense)),
        ("2_Dense/model.safetensors", first_rows_of_identity(dims, width)),
    ];
    for name in ["sentence_bert_config.json", "config_sentence_transformers.json"] {
        if let Some(value) = read(name)? {
            files.push((name, text(&value)));
        }
    }
    Ok(files.into_iter().map(|(name, bytes)| SideFile { name: name.to_string(), bytes }).collect())
}

/// A safetensors file of `linear.weight`, F32 [rows, columns].
fn first_rows_of_identity(rows: usize, columns: usize) -> Vec<u8> {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "linear.weight": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, rows * columns * 4]}
    });
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    for row in 0..rows {
        for column in 0..columns {
            let value: f32 = if row == column { 1.0 } else { 0.0 };
            file.extend(value.to_le_bytes());
        }
    }
    file
}
