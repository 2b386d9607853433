//! A [`PromptState`] as a file, which docs/formats.md describes: safetensors, written whole or not at all, with the hash of
//! the model and of everything in it.

use std::path::Path;

use luthier_checkpoint::safetensors::{SafetensorsFile, SafetensorsWriter};
use luthier_checkpoint::{Dtype, Output, TensorInfo, TensorSink, TensorSource, lineage};
use luthier_ops::attention::{CacheType, SavedCache};

use crate::Result;
use crate::prompt_memory::PromptState;

const FORMAT: &str = "luthier-prompt-cache";
const FORMAT_VERSION: &str = "1";
/// Layers that a file may have; more than any model.
const LAYERS_MAX: usize = 65_536;

/// What a state holds for; another model's is refused, one that was computed otherwise is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptOwner {
    /// Hash of config and weights.
    pub model_sha256: String,
    /// Program, threads and whatever else tells in the last bits.
    pub computed_by: String,
    /// What keys and values are rounded to.
    pub kind: CacheType,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// It is not there.
    Nothing,
    /// A state that the owner can use.
    State(PromptState),
    /// A prompt cache of no use, and why.
    Useless(String),
}

/// Reads a file.
///
/// # Errors
/// A file that is no prompt cache, or another model's: such is not to be replaced.
pub fn read_prompt(path: &Path, owner: &PromptOwner) -> Result<Found> {
    if std::fs::symlink_metadata(path).is_err() {
        return Ok(Found::Nothing);
    }
    let refused = |what: String| Err(luthier_checkpoint::Error::format(path, what).into());
    let file = match SafetensorsFile::open(path) {
        Ok(file) => file,
        Err(luthier_checkpoint::Error::Format { what, .. }) if begins_as_ours(path) => {
            return Ok(Found::Useless(format!("is damaged: {what}")));
        }
        Err(luthier_checkpoint::Error::Format { .. }) => {
            return refused(
                "is no prompt cache, and is not replaced by one; choose another place".to_string(),
            );
        }
        Err(error) => return Err(error.into()),
    };
    let key = |name: &str| {
        let found = file.metadata().iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    if key("format") != FORMAT {
        return refused("is no prompt cache, and is not replaced by one; choose another place".to_string());
    }
    if key("format_version") != FORMAT_VERSION {
        let version = key("format_version");
        return Ok(Found::Useless(format!("has format_version {version:?}, wanted {FORMAT_VERSION}")));
    }
    let mut lines = Vec::new();
    for info in file.infos() {
        lines.push(line(info, &file.read(&info.name)?));
    }
    if contents_sha256(file.metadata(), lines) != key("contents_sha256") {
        return Ok(Found::Useless(
            "is damaged: its contents do not have the hash that it states".to_string(),
        ));
    }
    if key("model_sha256") != owner.model_sha256 {
        return refused(
            "holds a prompt that another model has read (model_sha256); remove it, or choose another place"
                .to_string(),
        );
    }
    for (name, wanted) in [("kv_cache", owner.kind.as_str()), ("computed_by", owner.computed_by.as_str())] {
        if key(name) != wanted {
            return Ok(Found::Useless(format!("has {name} {}, wanted {wanted}", key(name))));
        }
    }
    match state(&file, owner.kind) {
        Ok(state) => Ok(Found::State(state)),
        Err(what) => Ok(Found::Useless(format!("is damaged: {what}"))),
    }
}

/// Writes a file, in place of what is there.
///
/// # Errors
/// A place that cannot be written.
pub fn write_prompt(path: &Path, owner: &PromptOwner, state: &PromptState) -> Result<()> {
    let output = Output::file(path, true, &[])?;
    let mut tensors: Vec<(TensorInfo, Vec<u8>)> = Vec::new();
    let mut add = |name: String, dtype: Dtype, shape: &[usize], bytes: Vec<u8>| {
        tensors.push((TensorInfo { name, dtype, shape: shape.to_vec() }, bytes));
    };
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let ids = state.token_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    add("token_ids".to_string(), Dtype::U32, &[state.token_ids.len()], ids);
    add("logits".to_string(), Dtype::F32, &[state.logits.len()], floats(&state.logits));
    for (number, layer) in state.layers.iter().enumerate() {
        let Some(layer) = layer else { continue };
        let shape = [layer.heads, layer.tokens, layer.head_dim];
        let scales = [layer.heads, layer.tokens, layer.kind.scales(layer.head_dim)];
        let name = |part: &str| format!("layers.{number}.{part}");
        add(name("keys"), stored(layer.kind), &shape, layer.keys.clone());
        add(name("values"), stored(layer.kind), &shape, layer.values.clone());
        if scales[2] > 0 {
            add(name("key_scales"), Dtype::F32, &scales, floats(&layer.key_scales));
            add(name("value_scales"), Dtype::F32, &scales, floats(&layer.value_scales));
        }
    }
    let layers = state.layers.len().to_string();
    let mut metadata = [
        ("format", FORMAT),
        ("format_version", FORMAT_VERSION),
        ("model_sha256", owner.model_sha256.as_str()),
        ("computed_by", owner.computed_by.as_str()),
        ("kv_cache", owner.kind.as_str()),
        ("layers", layers.as_str()),
    ]
    .map(|(key, value)| (key.to_string(), value.to_string()))
    .to_vec();
    let infos: Vec<TensorInfo> = tensors.iter().map(|(info, _)| info.clone()).collect();
    let lines = tensors.iter().map(|(info, bytes)| line(info, bytes)).collect();
    metadata.push(("contents_sha256".to_string(), contents_sha256(&metadata, lines)));
    let mut writer = SafetensorsWriter::create_file(output.path(), &infos, &metadata)?;
    for (info, bytes) in &tensors {
        writer.write(&info.name, bytes)?;
    }
    writer.finish()?;
    drop(writer);
    Ok(output.commit()?)
}

fn stored(kind: CacheType) -> Dtype {
    match kind {
        CacheType::F32 => Dtype::F32,
        CacheType::F16 => Dtype::F16,
        CacheType::Q8 => Dtype::I8,
    }
}

/// What a tensor adds to the hash of the contents.
fn line(info: &TensorInfo, bytes: &[u8]) -> String {
    let TensorInfo { name, dtype, shape } = info;
    format!("{name} {} {shape:?} {}\n", dtype.name(), lineage::sha256_of_bytes(bytes))
}

/// SHA-256 over the other metadata and the lines of all tensors, sorted.
fn contents_sha256(metadata: &[(String, String)], mut lines: Vec<String>) -> String {
    lines.sort();
    let others = metadata.iter().filter(|(key, _)| key != "contents_sha256");
    let listing: String = others.map(|(key, value)| format!("{key}={value}\n")).chain(lines).collect();
    lineage::sha256_of_bytes(listing.as_bytes())
}

/// Whether a file that cannot be read was one of ours.
fn begins_as_ours(path: &Path) -> bool {
    use std::io::Read;
    let wanted = format!("{{\"__metadata__\":{{\"format\":\"{FORMAT}\"");
    let mut start = vec![0; 8 + wanted.len()];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start[8..] == *wanted.as_bytes()
}

fn state(file: &SafetensorsFile, kind: CacheType) -> std::result::Result<PromptState, String> {
    let find = |name: &str| file.infos().iter().find(|info| info.name == name);
    let bytes = |name: &str, dtype: Dtype| -> std::result::Result<(Vec<usize>, Vec<u8>), String> {
        let info = find(name).filter(|info| info.dtype == dtype);
        let info = info.ok_or_else(|| format!("tensor {name}: wanted it in {}", dtype.name()))?;
        let bytes = file.read(name).map_err(|error| error.to_string())?;
        Ok((info.shape.clone(), bytes.to_vec()))
    };
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let (_, ids) = bytes("token_ids", Dtype::U32)?;
    let token_ids: Vec<u32> = ids.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let logits = floats(&bytes("logits", Dtype::F32)?.1);
    let count = file.metadata().iter().find(|(key, _)| key == "layers");
    let count = count.and_then(|(_, count)| count.parse::<usize>().ok()).filter(|count| *count <= LAYERS_MAX);
    let count = count.ok_or_else(|| format!("metadata key layers: wanted at most {LAYERS_MAX}"))?;
    let mut layers = Vec::new();
    for number in 0..count {
        let name = |part: &str| format!("layers.{number}.{part}");
        if find(&name("keys")).is_none() {
            layers.push(None);
            continue;
        }
        let (shape, keys) = bytes(&name("keys"), stored(kind))?;
        let (value_shape, values) = bytes(&name("values"), stored(kind))?;
        let &[heads, tokens, head_dim] = shape.as_slice() else {
            return Err(format!("{}: wanted three axes, came {shape:?}", name("keys")));
        };
        if value_shape != shape || tokens != token_ids.len() || heads == 0 || head_dim == 0 {
            let tokens = token_ids.len();
            return Err(format!("layer {number}: {shape:?} and {value_shape:?} for {tokens} tokens"));
        }
        let scales = |part: &str| -> std::result::Result<Vec<f32>, String> {
            let wanted = [heads, tokens, kind.scales(head_dim)];
            if wanted[2] == 0 {
                return Ok(Vec::new());
            }
            let (shape, scales) = bytes(&name(part), Dtype::F32)?;
            let fits = shape == wanted;
            fits.then(|| floats(&scales))
                .ok_or_else(|| format!("{}: {shape:?}, wanted {wanted:?}", name(part)))
        };
        let (key_scales, value_scales) = (scales("key_scales")?, scales("value_scales")?);
        layers.push(Some(SavedCache {
            kind,
            heads,
            tokens,
            head_dim,
            keys,
            values,
            key_scales,
            value_scales,
        }));
    }
    Ok(PromptState { token_ids, layers, logits })
}
