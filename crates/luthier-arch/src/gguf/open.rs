//! A model folder or a GGUF file as a checkpoint.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use luthier_checkpoint::gguf::{Gguf, GgufValue};
use luthier_checkpoint::{Checkpoint, Dtype, SideFile, TensorInfo, TensorSource};
use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;
use serde_json::{Map, Value, json};

use super::beside::{self, BESIDE_KEY, Beside};
use super::metadata::{HEAD, Metadata, ROPE_FACTORS};
use super::per_layer;
use super::write::{self, GgufOrigin, GgufTensor};
use super::{CONFIG_KEY, GgufDialect, NAMES_KEY, Transform, agreement, encoder_decoder, encoder_only};
use crate::table::{self, Architecture, ModelShape};
use crate::{Error, Result, load};

/// The file by which sentence-transformers knows what a model consists of.
const MODULES: &str = "modules.json";

/// Opens a model folder, a lone file of PyTorch's with its config.json beside it, or a GGUF file as if it were a folder.
pub fn open(place: &Path) -> Result<Checkpoint> {
    if place.is_dir() {
        return Ok(load::recognised(Checkpoint::open_folder(place)?));
    }
    if luthier_checkpoint::torch::is_torch_name(place) {
        return Ok(load::recognised(Checkpoint::open_torch_file(place)?));
    }
    open_gguf(place)
}

/// Opens a GGUF file: config and names in Hugging Face terms, weights as a folder would hold them.
pub fn open_gguf(path: &Path) -> Result<Checkpoint> {
    let gguf = Arc::new(Gguf::open(path)?);
    let stored = stored_config(&gguf)?;
    if let Some(config) = &stored
        && !has_gguf_names(config)?
    {
        agreement::check(config, &gguf)?;
        return checkpoint(path, config.clone(), Arc::clone(&gguf) as Arc<dyn TensorSource>, &gguf);
    }
    // The stored config says more, unless another program changed the weights since.
    let config = match stored {
        Some(stored) if fits(&stored, &gguf)? => {
            agreement::check(&stored, &gguf)?;
            stored
        }
        _ => derive_config(&gguf)?,
    };
    let source = renamed(&config, Arc::clone(&gguf))?;
    checkpoint(path, config, Arc::new(source), &gguf)
}

/// Whether files of this architecture have llama.cpp's names.
fn has_gguf_names(config: &Map<String, Value>) -> Result<bool> {
    Ok(table::architecture(&crate::config::Keys::new(config)?)?.gguf.is_some())
}

fn checkpoint(
    path: &Path,
    config: Map<String, Value>,
    tensors: Arc<dyn TensorSource>,
    gguf: &Gguf,
) -> Result<Checkpoint> {
    let mut side_files = luthier_checkpoint::gguf::side_files(gguf)?;
    if side_files.iter().all(|file| file.name != MODULES) {
        side_files.extend(pooling_files(gguf, &config));
    }
    Ok(Checkpoint { place: path.to_path_buf(), config, tensors, side_files })
}

/// What sentence-transformers reads, of a file that says how states become an embedding by a key of llama.cpp's.
fn pooling_files(gguf: &Gguf, config: &Map<String, Value>) -> Vec<SideFile> {
    let architecture = gguf.get("general.architecture").and_then(GgufValue::as_str).unwrap_or_default();
    let width = config.get("hidden_size");
    let Some(pooling) = encoder_only::pooling_config(architecture, gguf, width) else { return Vec::new() };
    let modules = json!([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]);
    [(MODULES, modules), ("1_Pooling/config.json", pooling)]
        .map(|(name, value)| SideFile { name: name.to_string(), bytes: format!("{value:#}\n").into_bytes() })
        .to_vec()
}

fn stored_config(gguf: &Gguf) -> Result<Option<Map<String, Value>>> {
    let Some(value) = gguf.get(CONFIG_KEY) else { return Ok(None) };
    let wrong = |what: String| Error::config(CONFIG_KEY, what);
    let text =
        value.as_str().ok_or_else(|| wrong("expected a string that holds a config.json".to_string()))?;
    serde_json::from_str(text).map(Some).map_err(|error| wrong(format!("expected a JSON object: {error}")))
}

/// Whether the file holds exactly the weights that this config asks for.
fn fits(config: &Map<String, Value>, gguf: &Gguf) -> Result<bool> {
    let (shape, architecture) = fitted(config, gguf)?;
    let infos: HashMap<&str, &TensorInfo> =
        gguf.infos().iter().map(|info| (info.name.as_str(), info)).collect();
    let is_tied = shape.layout().ties.iter().any(|tie| tie.name == "lm_head.weight");
    let same =
        |tensor: &GgufTensor| infos.get(tensor.name.as_str()).is_some_and(|info| info.shape == tensor.shape);
    Ok(!(is_tied && infos.contains_key(HEAD)) && write::tensors(&shape, architecture)?.iter().all(same))
}

/// The shape of a model of this config, in the form of the folder that the file stands for.
fn fitted(config: &Map<String, Value>, gguf: &Gguf) -> Result<(ModelShape, &'static Architecture)> {
    let architecture = table::architecture(&crate::config::Keys::new(config)?)?;
    let shape = match table::shape(config)? {
        ModelShape::EncoderOnly(shape) => {
            let form = encoder_only::form_of(&shape, gguf)?;
            ModelShape::EncoderOnly(shape).fitted(&form)
        }
        other => other,
    };
    match architecture.gguf {
        Some(_) => Ok((shape, architecture)),
        None => Err(Error::config("model_type", format!("{} has no GGUF names", architecture.model_type))),
    }
}

/// Hugging Face names over a GGUF file.
struct Renamed {
    gguf: Arc<Gguf>,
    infos: Vec<TensorInfo>,
    origins: HashMap<String, (TensorInfo, Transform)>,
    /// Names that stand for another one's tensor.
    repeated: HashMap<String, String>,
}

impl TensorSource for Renamed {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> luthier_checkpoint::Result<SharedBytes> {
        let name = self.repeated.get(name).map_or(name, String::as_str);
        let Some((info, transform)) = self.origins.get(name) else {
            if let Some(bytes) = beside::bytes(&self.gguf, name) {
                return Ok(SharedBytes::from_vec(bytes.to_vec()));
            }
            let what = format!("is not in {}", self.gguf.path().display());
            return Err(luthier_checkpoint::Error::Tensor { name: name.to_string(), what });
        };
        let bytes = self.gguf.read(&info.name)?;
        match transform.undo(info, bytes) {
            Ok((_, bytes)) => Ok(bytes),
            Err(Error::Checkpoint(error)) => Err(error),
            Err(other) => {
                Err(luthier_checkpoint::Error::Tensor { name: name.to_string(), what: other.to_string() })
            }
        }
    }
}

fn renamed(config: &Map<String, Value>, gguf: Arc<Gguf>) -> Result<Renamed> {
    let (shape, architecture) = fitted(config, &gguf)?;
    let mut names = HashMap::new();
    for tensor in write::tensors(&shape, architecture)? {
        if let GgufOrigin::Tensor { name, transform } = tensor.origin {
            // Files of llama.cpp's own converter hold the norm as the folder has it.
            let is_plain =
                matches!(transform, Transform::ScaleStates { .. }) && !encoder_decoder::is_scaled(&gguf);
            names.insert(tensor.name, (name, if is_plain { Transform::Keep } else { transform }));
        }
    }
    let (mut infos, mut origins) = (Vec::new(), HashMap::new());
    for info in gguf.infos() {
        // The config holds what it says.
        if info.name == ROPE_FACTORS {
            continue;
        }
        // A tensor that the config has no place for keeps its name, under which it is reported.
        let kept = (info.name.clone(), Transform::Keep);
        let (name, transform) = names.get(&info.name).cloned().unwrap_or(kept);
        let dtype = transform.undone_dtype(info.dtype);
        infos.push(TensorInfo { name: name.clone(), dtype, shape: info.shape.clone() });
        if let Some((other, _)) = origins.insert(name, (info.clone(), transform)) {
            let what = format!("stands for the same weight as {}", other.name);
            return Err(Error::tensor(&info.name, what));
        }
    }
    let mut repeated = HashMap::new();
    let mut beside = beside::read(&gguf)?;
    // Those with bytes of their own first: others may repeat them.
    beside.sort_by_key(|tensor| matches!(tensor, Beside::SameAs { .. }));
    for tensor in beside {
        let info = match tensor {
            Beside::Bytes(info) => info,
            Beside::SameAs { name, target } => {
                let found = infos.iter().find(|info| info.name == target);
                let missing =
                    || Error::tensor(&name, format!("is {target} once more, which is not in the file"));
                let info = TensorInfo { name: name.clone(), ..found.ok_or_else(missing)?.clone() };
                repeated.insert(name, target);
                info
            }
        };
        if infos.iter().any(|other| other.name == info.name) {
            return Err(Error::tensor(&info.name, format!("stands in the file and under {BESIDE_KEY}")));
        }
        infos.push(info);
    }
    if let Some(names) = gguf.get(NAMES_KEY).and_then(GgufValue::as_strings) {
        let places: HashMap<&str, usize> =
            names.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        infos.sort_by_key(|info| places.get(info.name.as_str()).copied().unwrap_or(names.len()));
    }
    Ok(Renamed { gguf, infos, origins, repeated })
}

/// The config.json that the metadata amounts to.
fn derive_config(gguf: &Gguf) -> Result<Map<String, Value>> {
    let metadata = Metadata::new(gguf)?;
    let (architecture, dialect) = metadata.architecture()?;
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_string(), value);
    };
    set("architectures", json!([dialect.class]));
    set("model_type", json!(architecture.model_type));
    let vocab_size = metadata.vocab_size()?;
    set("vocab_size", json!(vocab_size));
    match dialect.architecture {
        "bert" => encoder_only::config(&metadata, &mut set)?,
        "t5" => encoder_decoder::config(&metadata, &mut set)?,
        _ => decoder_only(&metadata, architecture, &dialect, &mut set)?,
    }
    for (key, name) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        // As llama.cpp takes it: an id outside of the vocabulary says that there is no such token.
        let id = gguf.get(&format!("tokenizer.ggml.{name}_token_id")).and_then(GgufValue::as_u64);
        set(key, id.filter(|id| *id < vocab_size).map_or(Value::Null, |id| json!(id)));
    }
    let dtype = match metadata.embedding()?.dtype {
        Dtype::Weights(BlockType::F16) => "float16",
        Dtype::Weights(BlockType::BF16) => "bfloat16",
        _ => "float32",
    };
    set("dtype", json!(dtype));
    Ok(config)
}

/// What the ordinary keys say of a decoder-only model.
fn decoder_only(
    metadata: &Metadata,
    architecture: &Architecture,
    dialect: &GgufDialect,
    set: &mut impl FnMut(&str, Value),
) -> Result<()> {
    set("hidden_size", metadata.size("embedding_length")?);
    let mut sizes = per_layer::read(metadata, metadata.n_layers()?)?.into_iter();
    if let Some((key, value)) = sizes.next() {
        set(key, value);
    }
    set("num_hidden_layers", metadata.size("block_count")?);
    set("head_dim", json!(metadata.head_dim()?));
    sizes.for_each(|(key, value)| set(key, value));
    if let Some(length) = metadata.optional_size("context_length")? {
        set("max_position_embeddings", json!(length));
    }
    if let Some(eps) = metadata.number("attention.layer_norm_rms_epsilon")? {
        set("rms_norm_eps", json!(eps));
    }
    set("rope_parameters", metadata.rope()?);
    set("tie_word_embeddings", json!(dialect.always_tied || metadata.info(HEAD).is_none()));
    for (key, value) in metadata.peculiarities(architecture.model_type)? {
        set(key, value);
    }
    Ok(())
}
