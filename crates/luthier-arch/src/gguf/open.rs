//! A model folder or a GGUF file as a checkpoint.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use luthier_checkpoint::gguf::{Gguf, GgufValue};
use luthier_checkpoint::layout::Layout;
use luthier_checkpoint::{Checkpoint, Dtype, TensorInfo, TensorSource};
use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;
use serde_json::{Map, Value, json};

use super::agreement;
use super::metadata::{EMBEDDING, HEAD, Metadata, ROPE_FACTORS};
use super::names::{expert_of, experts_of, stored_shape};
use super::{CONFIG_KEY, GgufDialect, Transform, name_of};
use crate::blocks::stack::StackShape;
use crate::table::{self, ModelShape};
use crate::{Error, Result};

/// Opens a model folder, a lone file of PyTorch's with its config.json beside it, or a GGUF file as if it were a folder.
pub fn open(place: &Path) -> Result<Checkpoint> {
    if place.is_dir() {
        return crate::fused::split(Checkpoint::open_folder(place)?);
    }
    if luthier_checkpoint::torch::is_torch_name(place) {
        return crate::fused::split(Checkpoint::open_torch_file(place)?);
    }
    open_gguf(place)
}

/// Opens a GGUF file: config and names in Hugging Face terms, weights as a folder would hold them.
pub fn open_gguf(path: &Path) -> Result<Checkpoint> {
    let gguf = Arc::new(Gguf::open(path)?);
    let stored = stored_config(&gguf)?;
    if let Some(config) = &stored
        && let ModelShape::EncoderDecoder(_) = table::shape(config)?
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

fn checkpoint(
    path: &Path,
    config: Map<String, Value>,
    tensors: Arc<dyn TensorSource>,
    gguf: &Gguf,
) -> Result<Checkpoint> {
    let side_files = luthier_checkpoint::gguf::side_files(gguf)?;
    Ok(Checkpoint { place: path.to_path_buf(), config, tensors, side_files })
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
    let (layout, ..) = decoder_only(config)?;
    let infos: HashMap<&str, &TensorInfo> =
        gguf.infos().iter().map(|info| (info.name.as_str(), info)).collect();
    let is_head = |tie: &luthier_checkpoint::layout::Tie| tie.name == "lm_head.weight";
    let tied = !infos.contains_key(HEAD) || !layout.ties.iter().any(is_head) || repeats_embedding(gguf)?;
    let experts = experts_of(&layout);
    let same = |spec: &luthier_checkpoint::layout::TensorSpec| {
        let info = name_of(spec.role).and_then(|name| infos.get(name.as_str()).copied());
        info.is_some_and(|info| info.shape == stored_shape(spec, &experts))
    };
    Ok(tied && layout.tensors.iter().all(same))
}

/// Whether the head is the embedding once more.
fn repeats_embedding(gguf: &Gguf) -> Result<bool> {
    let info = |name: &str| gguf.infos().iter().find(|info| info.name == name);
    let (Some(head), Some(embedding)) = (info(HEAD), info(EMBEDDING)) else { return Ok(false) };
    let same = head.dtype == embedding.dtype && head.shape == embedding.shape;
    Ok(same && gguf.read(HEAD)?[..] == gguf.read(EMBEDDING)?[..])
}

fn decoder_only(config: &Map<String, Value>) -> Result<(Layout, StackShape, GgufDialect)> {
    let shape = table::shape(config)?;
    let layout = shape.layout();
    let architecture = table::architecture(&crate::config::Keys::new(config)?)?;
    match (shape, architecture.gguf) {
        (ModelShape::DecoderOnly { stack, .. }, Some(dialect)) => Ok((layout, *stack, dialect)),
        _ => Err(Error::config("model_type", format!("{} has no GGUF names", architecture.model_type))),
    }
}

/// Hugging Face names over a GGUF file.
struct Renamed {
    gguf: Arc<Gguf>,
    infos: Vec<TensorInfo>,
    origins: HashMap<String, Stored>,
}

/// Where a tensor lies in the file.
struct Stored {
    /// The file's tensor.
    info: TensorInfo,
    transform: Transform,
    /// Number of the expert, and of how many, where the file's tensor holds all of a layer.
    expert: Option<(usize, usize)>,
}

impl TensorSource for Renamed {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> luthier_checkpoint::Result<SharedBytes> {
        let Some(Stored { info, transform, expert }) = self.origins.get(name) else {
            let what = format!("is not in {}", self.gguf.path().display());
            return Err(luthier_checkpoint::Error::Tensor { name: name.to_string(), what });
        };
        let mut bytes = self.gguf.read(&info.name)?;
        if let Some((number, experts)) = expert {
            let own = bytes.len() / experts;
            let outside =
                || luthier_checkpoint::Error::tensor(name, "lies outside of the tensor that holds it");
            bytes = bytes.part(number * own..(number + 1) * own).ok_or_else(outside)?;
        }
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
    let (layout, stack, dialect) = decoder_only(config)?;
    let experts = experts_of(&layout);
    // Several experts lie in one tensor.
    let mut names: HashMap<String, Vec<&luthier_checkpoint::layout::TensorSpec>> = HashMap::new();
    for spec in &layout.tensors {
        if let Some(name) = name_of(spec.role) {
            names.entry(name).or_default().push(spec);
        }
    }
    let is_tied = layout.ties.iter().any(|tie| tie.name == "lm_head.weight");
    let (mut infos, mut origins) = (Vec::new(), HashMap::new());
    for info in gguf.infos() {
        // The config holds what it says; a head that a tied config has no place for was compared with the embedding.
        if info.name == ROPE_FACTORS || info.name == HEAD && is_tied {
            continue;
        }
        let mut add = |name: String, shape: Vec<usize>, transform: Transform, expert| {
            let dtype = transform.undone_dtype(info.dtype);
            infos.push(TensorInfo { name: name.clone(), dtype, shape });
            let other = origins.insert(name, Stored { info: info.clone(), transform, expert });
            other.map_or(Ok(()), |other| {
                let what = format!("stands for the same weight as {}", other.info.name);
                Err(Error::tensor(&info.name, what))
            })
        };
        // A tensor that the config has no place for keeps its name, under which it is reported.
        let Some(specs) = names.get(&info.name) else {
            add(info.name.clone(), info.shape.clone(), Transform::Keep, None)?;
            continue;
        };
        for spec in specs {
            let wanted = stored_shape(spec, &experts);
            let number = expert_of(spec.role.part);
            let fits = info.shape == wanted;
            if !fits && number.is_some() {
                let what = format!("expected shape {wanted:?} from the metadata, found {:?}", info.shape);
                return Err(Error::tensor(&info.name, what));
            }
            // Others of the wrong shape are named by whoever compares them with the config.
            let shape = if fits { spec.shape.clone() } else { info.shape.clone() };
            let expert = number.map(|number| (number, wanted[0]));
            add(spec.name.clone(), shape, Transform::of(spec.role, &stack, &dialect), expert)?;
        }
    }
    Ok(Renamed { gguf, infos, origins })
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
    set("hidden_size", metadata.size("embedding_length")?);
    set("intermediate_size", metadata.uniform("feed_forward_length")?);
    set("num_hidden_layers", metadata.size("block_count")?);
    let heads = metadata.uniform("attention.head_count")?;
    let kv_heads = match metadata.get("attention.head_count_kv") {
        Some(_) => metadata.uniform("attention.head_count_kv")?,
        None => heads.clone(),
    };
    set("head_dim", json!(metadata.head_dim(&heads)?));
    set("num_attention_heads", heads);
    set("num_key_value_heads", kv_heads);
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
