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
use super::metadata::{EMBEDDING, HEAD, Metadata, ROPE_FACTORS};
use super::per_layer;
use super::write::{self, GgufOrigin, GgufTensor};
use super::{CONFIG_KEY, GgufDialect, NAMES_KEY, Transform, agreement, encoder_decoder, encoder_only};
use crate::table::{self, Architecture, ModelShape};
use crate::{Error, Result, fused, load};

/// The file by which sentence-transformers knows what a model consists of.
const MODULES: &str = "modules.json";

/// Opens a model folder, a lone file of PyTorch's with its config.json beside it, or a GGUF file as if it were a folder.
pub fn open(place: &Path) -> Result<Checkpoint> {
    if place.is_dir() {
        return fused::split(load::recognised(Checkpoint::open_folder(place)?));
    }
    if luthier_checkpoint::torch::is_torch_name(place) {
        return fused::split(load::recognised(Checkpoint::open_torch_file(place)?));
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
    let spare_head = infos.contains_key(HEAD) && has_tied_head(&shape);
    let same = |tensor: &GgufTensor| {
        tensor.name == HEAD && has_tied_head(&shape)
            || infos.get(tensor.name.as_str()).is_some_and(|info| info.shape == tensor.shape)
    };
    Ok((!spare_head || repeats_embedding(&shape, gguf)?)
        && write::tensors(&shape, architecture)?.iter().all(same))
}

fn has_tied_head(shape: &ModelShape) -> bool {
    shape.layout().ties.iter().any(|tie| tie.name == "lm_head.weight")
}

/// Whether the head of the file is the embedding once more, as in a decoder-only model whose config ties them.
fn repeats_embedding(shape: &ModelShape, gguf: &Gguf) -> Result<bool> {
    if !matches!(shape, ModelShape::DecoderOnly { tied_head: true, .. }) {
        return Ok(false);
    }
    let info = |name: &str| gguf.infos().iter().find(|info| info.name == name);
    let (Some(head), Some(embedding)) = (info(HEAD), info(EMBEDDING)) else { return Ok(false) };
    let same = head.dtype == embedding.dtype && head.shape == embedding.shape;
    Ok(same && gguf.read(HEAD)?[..] == gguf.read(EMBEDDING)?[..])
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
    origins: HashMap<String, Stored>,
    /// Names that stand for another one's tensor.
    repeated: HashMap<String, String>,
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
        let name = self.repeated.get(name).map_or(name, String::as_str);
        let Some(Stored { info, transform, expert }) = self.origins.get(name) else {
            if let Some(bytes) = beside::bytes(&self.gguf, name) {
                return Ok(SharedBytes::from_vec(bytes.to_vec()));
            }
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

/// The file's tensors under the names of the folder that it stands for.
fn renamed_tensors(
    config: &Map<String, Value>,
    gguf: &Gguf,
) -> Result<(Vec<TensorInfo>, HashMap<String, Stored>)> {
    let (shape, architecture) = fitted(config, gguf)?;
    let layout = shape.layout();
    let shapes: HashMap<&str, &[usize]> =
        layout.tensors.iter().map(|spec| (spec.name.as_str(), spec.shape.as_slice())).collect();
    let tensors = write::tensors(&shape, architecture)?;
    let wanted: HashMap<&str, &GgufTensor> =
        tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let repeats_embedding = repeats_embedding(&shape, gguf)?;
    // Files of llama.cpp's own converter hold the norm as the folder has it.
    let is_plain = |transform: &Transform| {
        matches!(transform, Transform::ScaleStates { .. }) && !encoder_decoder::is_scaled(gguf)
    };
    let (mut infos, mut origins) = (Vec::new(), HashMap::new());
    for info in gguf.infos() {
        // The config holds what it says.
        if info.name == ROPE_FACTORS || info.name == HEAD && repeats_embedding {
            continue;
        }
        let mut add = |name: &str, shape: &[usize], transform: Transform, expert| {
            let (name, shape) = (name.to_string(), shape.to_vec());
            let dtype = transform.undone_dtype(info.dtype);
            infos.push(TensorInfo { name: name.clone(), dtype, shape });
            let other = origins.insert(name, Stored { info: info.clone(), transform, expert });
            other.map_or(Ok(()), |other: Stored| {
                let what = format!("stands for the same weight as {}", other.info.name);
                Err(Error::tensor(&info.name, what))
            })
        };
        let tensor = wanted.get(info.name.as_str());
        let fits = tensor.is_some_and(|tensor| tensor.shape == info.shape);
        match tensor.map(|tensor| (&tensor.origin, &tensor.shape)) {
            Some((GgufOrigin::Tensor { name, transform }, _)) => {
                // One of the wrong shape is named by whoever compares it with the config.
                let own = shapes.get(name.as_str()).copied().filter(|_| fits).unwrap_or(&info.shape);
                let transform = if is_plain(transform) { Transform::Keep } else { *transform };
                add(name, own, transform, None)?;
            }
            Some((GgufOrigin::Stacked { names }, shape)) => {
                if !fits {
                    let what = format!("expected shape {shape:?} from the metadata, found {:?}", info.shape);
                    return Err(Error::tensor(&info.name, what));
                }
                for (number, name) in names.iter().enumerate() {
                    add(name, &shape[1..], Transform::Keep, Some((number, names.len())))?;
                }
            }
            // A tensor that the config has no place for keeps its name, under which it is reported.
            Some((GgufOrigin::Made(_), _)) | None => add(&info.name, &info.shape, Transform::Keep, None)?,
        }
    }
    Ok((infos, origins))
}

fn renamed(config: &Map<String, Value>, gguf: Arc<Gguf>) -> Result<Renamed> {
    let (mut infos, origins) = renamed_tensors(config, &gguf)?;
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
