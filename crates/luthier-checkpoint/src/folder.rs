//! A model folder in Hugging Face layout, read as a value.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::adapter::Adapter;
use crate::checkpoint::SideFile;
use crate::gguf::Gguf;
use crate::safetensors::{SafetensorsFile, ShardedTensors};
use crate::torch::TorchFile;
use crate::{Checkpoint, Error, Result, TensorSource};

/// Small files that hold a tokenizer or a part of one, by name.
pub const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
];

/// Other small files that travel with the weights, by name.
const SIDE_FILES: &[&str] = &[
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "README.md",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];

/// A folder of further templates, as newer Hugging Face tools write it.
const MORE_TEMPLATES: &str = "additional_chat_templates";

/// What stands in the folder of a module.
const MODULE_CONFIG: &str = "config.json";

/// The weights of a module that is small: a linear step behind the pooling. The folder of a Transformer holds a model.
const DENSE_WEIGHTS: &str = "model.safetensors";

/// Largest side file that is read.
const MAX_SIDE_FILE_BYTES: u64 = 512 << 20;

impl Checkpoint {
    /// Opens a folder: config.json, the weights (safetensors or PyTorch's own files), and the small files beside them.
    /// Weights that bitsandbytes has rounded are seen as floats, and the config without the key that says so.
    pub fn open_folder(place: &Path) -> Result<Checkpoint> {
        let (config, tensors) = open_stored(place)?;
        let (config, tensors) = crate::bitsandbytes::restored(config, tensors)?;
        Ok(Checkpoint { place: place.to_path_buf(), config, tensors, side_files: read_side_files(place)? })
    }

    /// Opens a lone file of PyTorch's own format; config.json and the small files lie beside it.
    pub fn open_torch_file(path: &Path) -> Result<Checkpoint> {
        let folder = folder_of(path);
        let config = folder.join("config.json");
        if !config.exists() {
            let what = "holds weights alone; wanted a config.json beside it, which says what model they are";
            return Err(Error::format(path, what));
        }
        let config = read_config(&config)?;
        let tensors = Arc::new(TorchFile::open(path)?);
        Ok(Checkpoint { place: path.to_path_buf(), config, tensors, side_files: read_side_files(folder)? })
    }

    /// The bytes of a side file of that name.
    pub fn side_file(&self, name: &str) -> Option<&[u8]> {
        self.side_files.iter().find(|file| file.name == name).map(|file| file.bytes.as_slice())
    }
}

/// config.json and tensors of a folder as they are stored: the parts of rounded weights each by itself.
pub fn open_stored(place: &Path) -> Result<(Map<String, Value>, Arc<dyn TensorSource>)> {
    Ok((read_config(&place.join("config.json"))?, open_weights(place)?))
}

/// The small files of a folder, which need not hold a model: a tokenizer alone will do.
pub fn read_side_files(place: &Path) -> Result<Vec<SideFile>> {
    let mut side_files = Vec::new();
    for path in side_file_paths(place)? {
        let name = path.strip_prefix(place).expect("side files lie inside their folder");
        let name = name.to_str().ok_or_else(|| Error::format(&path, "its name is not UTF-8"))?.to_string();
        side_files.push(SideFile { name, bytes: read_small(&path)? });
    }
    Ok(side_files)
}

/// Parses a config.json, keys in file order. Refuses anything but an object.
pub fn read_config(path: &Path) -> Result<Map<String, Value>> {
    let bytes = read_small(path)?;
    serde_json::from_slice(&bytes)
        .map_err(|problem| Error::format(path, format!("wanted a JSON object: {problem}")))
}

/// Every file that makes up the model at `place`, in a fixed order: what a lineage records the hashes of. Of an adapter's folder
/// its two files; of another folder config, weights and their index, side files, those that exist; of a GGUF file all its parts; of a
/// lone file of PyTorch's also config and side files beside it; else the file itself.
pub fn model_files(place: &Path) -> Result<Vec<PathBuf>> {
    if !place.is_dir() {
        if Gguf::is_gguf(place) {
            return Ok(Gguf::open(place)?.paths().map(Path::to_path_buf).collect());
        }
        let folder = folder_of(place);
        let config = folder.join("config.json");
        if !crate::torch::is_torch_name(place) || !config.exists() {
            return Ok(vec![place.to_path_buf()]);
        }
        let mut files = vec![config, place.to_path_buf()];
        files.extend(side_file_paths(folder)?);
        return Ok(files);
    }
    if Adapter::is_adapter(place) && !place.join("config.json").exists() {
        return Ok(Adapter::files(place));
    }
    let mut files = vec![place.join("config.json")];
    match weights_of(place) {
        Some(Weights::Single(path) | Weights::TorchSingle(path)) => files.push(path),
        Some(Weights::Shards(index)) => {
            files.extend(ShardedTensors::open(&index)?.paths().map(Path::to_path_buf));
            files.push(index);
        }
        Some(Weights::TorchShards(index)) => {
            files.extend(ShardedTensors::open_torch(&index)?.paths().map(Path::to_path_buf));
            files.push(index);
        }
        None => {}
    }
    files.extend(side_file_paths(place)?);
    Ok(files)
}

/// The folder that a file lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether a file of that name inside a model folder travels with the weights.
pub(crate) fn is_side_file(name: &str) -> bool {
    let template = |(folder, name): (&str, &str)| {
        folder == MORE_TEMPLATES && name.ends_with(".jinja") && !name.contains(['/', '\\'])
    };
    let module = |(folder, name): (&str, &str)| {
        is_module_folder(folder)
            && (name == MODULE_CONFIG || (is_dense_folder(folder) && name == DENSE_WEIGHTS))
    };
    TOKENIZER_FILES.contains(&name)
        || SIDE_FILES.contains(&name)
        || name.split_once('/').is_some_and(|parts| template(parts) || module(parts))
}

/// `1_Pooling` and the like: what follows the model in sentence-transformers' list of modules.
fn is_module_folder(name: &str) -> bool {
    name.split_once('_').is_some_and(|(number, kind)| {
        !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
            && !kind.is_empty()
            && kind.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

fn is_dense_folder(name: &str) -> bool {
    is_module_folder(name) && name.ends_with("_Dense")
}

/// Whether an entry of that name at the top of a folder is what a model consists of: config, weights and their indexes,
/// side files, lineage.
pub fn is_part_of_model(name: &str) -> bool {
    let endings = [".safetensors", ".bin", ".pt", ".pth", ".index.json"];
    is_side_file(name)
        || ["config.json", "lineage.json", crate::adapter::CONFIG_NAME, MORE_TEMPLATES].contains(&name)
        || is_module_folder(name)
        || endings.iter().any(|ending| name.ends_with(ending))
}

/// The files that hold a folder's weights.
enum Weights {
    Single(PathBuf),
    Shards(PathBuf),
    TorchSingle(PathBuf),
    TorchShards(PathBuf),
}

/// The first that is there, in the order in which transformers looks.
fn weights_of(place: &Path) -> Option<Weights> {
    let found = |name: &str| Some(place.join(name)).filter(|path| path.exists());
    found("model.safetensors")
        .map(Weights::Single)
        .or_else(|| found(crate::safetensors::INDEX_NAME).map(Weights::Shards))
        .or_else(|| found(crate::torch::SINGLE_NAME).map(Weights::TorchSingle))
        .or_else(|| found(crate::torch::INDEX_NAME).map(Weights::TorchShards))
}

fn open_weights(place: &Path) -> Result<Arc<dyn TensorSource>> {
    Ok(match weights_of(place) {
        Some(Weights::Single(path)) => Arc::new(SafetensorsFile::open(&path)?),
        Some(Weights::Shards(index)) => Arc::new(ShardedTensors::open(&index)?),
        Some(Weights::TorchSingle(path)) => Arc::new(TorchFile::open(&path)?),
        Some(Weights::TorchShards(index)) => Arc::new(ShardedTensors::open_torch(&index)?),
        None => {
            let what =
                "holds no weights: neither model.safetensors nor pytorch_model.bin, nor an index of either";
            return Err(Error::format(place, what));
        }
    })
}

fn side_file_paths(place: &Path) -> Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = TOKENIZER_FILES
        .iter()
        .chain(SIDE_FILES)
        .map(|name| place.join(name))
        // A link to nothing is there too: what it stood for is not left out silently.
        .filter(|path| path.symlink_metadata().is_ok())
        .collect();
    let more = place.join(MORE_TEMPLATES);
    if more.is_dir() {
        let mut templates = Vec::new();
        for entry in std::fs::read_dir(&more).map_err(|source| Error::io(&more, source))? {
            let path = entry.map_err(|source| Error::io(&more, source))?.path();
            if path.extension().is_some_and(|ending| ending == "jinja") {
                templates.push(path);
            }
        }
        templates.sort();
        paths.extend(templates);
    }
    let mut modules = Vec::new();
    for entry in std::fs::read_dir(place).map_err(|source| Error::io(place, source))? {
        let path = entry.map_err(|source| Error::io(place, source))?.path();
        let is_of =
            |kind: fn(&str) -> bool| path.file_name().and_then(|name| name.to_str()).is_some_and(kind);
        if is_of(is_module_folder) && path.join(MODULE_CONFIG).is_file() {
            modules.push(path.join(MODULE_CONFIG));
            let weights = path.join(DENSE_WEIGHTS);
            if is_of(is_dense_folder) && weights.is_file() {
                modules.push(weights);
            }
        }
    }
    modules.sort();
    paths.extend(modules);
    Ok(paths)
}

/// The bytes of a small file. Refuses folders, pipes and devices, which may never end.
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path).map_err(|source| Error::io(path, source))?;
    if !metadata.is_file() {
        return Err(Error::format(
            path,
            "wanted a file, found a folder, a pipe or a device; put the file in its place",
        ));
    }
    if metadata.len() > MAX_SIDE_FILE_BYTES {
        return Err(Error::format(path, format!("has {} bytes; wanted a small file", metadata.len())));
    }
    std::fs::read(path).map_err(|source| Error::io(path, source))
}
