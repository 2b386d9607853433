//! Writes safetensors files, one tensor at a time and in any order; the headers are known before the first byte.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::INDEX_NAME;
use crate::early_sync::EarlySync;
use crate::{Dtype, Error, Result, TensorInfo, TensorSink};

/// A file, or the shards of a folder, being written.
pub struct SafetensorsWriter {
    shards: Vec<Shard>,
    shard_of: HashMap<String, usize>,
    /// The index to write at the end, where there is more than one shard.
    index: Option<(PathBuf, Vec<u8>)>,
    early_sync: EarlySync,
}

struct Shard {
    path: PathBuf,
    file: File,
    /// Offset in the file and size of what is not yet written of each tensor.
    missing: HashMap<String, (u64, usize)>,
}

impl SafetensorsWriter {
    /// Begins `model.safetensors` in `folder`, or shards of at most `max_shard_bytes` of data with their index when that
    /// is given and too small for one file. A tensor larger than a shard gets one to itself.
    pub fn create(
        folder: &Path,
        infos: &[TensorInfo],
        metadata: &[(String, String)],
        max_shard_bytes: Option<usize>,
    ) -> Result<SafetensorsWriter> {
        let groups = plan_shards(infos, max_shard_bytes)?;
        if groups.len() <= 1 {
            return SafetensorsWriter::create_file(&folder.join("model.safetensors"), infos, metadata);
        }
        refuse_twice(infos)?;
        let mut writer = SafetensorsWriter {
            shards: Vec::new(),
            shard_of: HashMap::new(),
            index: None,
            early_sync: EarlySync::default(),
        };
        let mut weight_map = Map::new();
        let mut total_size = 0usize;
        for (shard_idx, group) in groups.iter().enumerate() {
            let name = format!("model-{:05}-of-{:05}.safetensors", shard_idx + 1, groups.len());
            for info in *group {
                weight_map.insert(info.name.clone(), Value::String(name.clone()));
                writer.shard_of.insert(info.name.clone(), shard_idx);
                total_size += size_of_tensor(info)?;
            }
            writer.shards.push(Shard::create(&folder.join(name), group, metadata)?);
        }
        let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
        writer.index = Some((folder.join(INDEX_NAME), crate::json::to_text(&index).into_bytes()));
        Ok(writer)
    }

    /// Begins one file of any name.
    pub fn create_file(
        path: &Path,
        infos: &[TensorInfo],
        metadata: &[(String, String)],
    ) -> Result<SafetensorsWriter> {
        refuse_twice(infos)?;
        let shard = Shard::create(path, infos, metadata)?;
        let shard_of = infos.iter().map(|info| (info.name.clone(), 0)).collect();
        Ok(SafetensorsWriter { shards: vec![shard], shard_of, index: None, early_sync: EarlySync::default() })
    }

    /// Writes the next bytes of an announced tensor, whose parts come in order.
    pub fn write_part(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let shard = self.shard(name)?;
        shard.write_part(name, bytes)?;
        self.note(name, bytes.len());
        Ok(())
    }

    fn note(&mut self, name: &str, len: usize) {
        if let Some(shard) = self.shard_of.get(name) {
            self.early_sync.wrote(&self.shards[*shard].file, len);
        }
    }

    fn shard(&mut self, name: &str) -> Result<&mut Shard> {
        let unknown = || Error::tensor(name, "is not among those to be written");
        self.shard_of.get(name).map(|shard| &mut self.shards[*shard]).ok_or_else(unknown)
    }

    /// The metadata that Hugging Face tools want to see in a model's file.
    pub fn pt_metadata() -> Vec<(String, String)> {
        vec![("format".to_string(), "pt".to_string())]
    }
}

impl TensorSink for SafetensorsWriter {
    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.shard(name)?.write(name, bytes)?;
        self.note(name, bytes.len());
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        for shard in &mut self.shards {
            if let Some(name) = shard.missing.keys().min() {
                return Err(Error::tensor(name, format!("was never written to {}", shard.path.display())));
            }
            shard.file.flush().map_err(|source| Error::io(&shard.path, source))?;
        }
        if let Some(shard) = self.shards.first() {
            self.early_sync.finish().map_err(|source| Error::io(&shard.path, source))?;
        }
        if let Some((path, bytes)) = &self.index {
            std::fs::write(path, bytes).map_err(|source| Error::io(path, source))?;
        }
        Ok(())
    }
}

impl Shard {
    fn create(path: &Path, infos: &[TensorInfo], metadata: &[(String, String)]) -> Result<Shard> {
        // Wide types first, the order given within a type: every tensor is then aligned to its own values.
        let mut ordered: Vec<&TensorInfo> = infos.iter().collect();
        ordered.sort_by_key(|info| std::cmp::Reverse(info.dtype.block().1));
        let mut header = Map::new();
        if !metadata.is_empty() {
            let texts: Map<String, Value> =
                metadata.iter().map(|(key, text)| (key.clone(), Value::String(text.clone()))).collect();
            header.insert("__metadata__".to_string(), Value::Object(texts));
        }
        let mut offset = 0usize;
        let mut offsets = Vec::with_capacity(ordered.len());
        for info in ordered {
            let size = size_of_tensor(info)?;
            let end =
                offset.checked_add(size).ok_or_else(|| Error::tensor(&info.name, "the file is too large"))?;
            let dtype = dtype_name(info.dtype, &info.name)?;
            let entry = json!({"dtype": dtype, "shape": info.shape, "data_offsets": [offset, end]});
            header.insert(info.name.clone(), entry);
            offsets.push((info.name.clone(), offset, size));
            offset = end;
        }
        let mut text = serde_json::to_vec(&header).expect("a map of plain values becomes JSON");
        text.resize(text.len().next_multiple_of(8), b' ');
        let data_start = 8 + text.len() as u64;
        let mut file = File::create(path).map_err(|source| Error::io(path, source))?;
        file.write_all(&(text.len() as u64).to_le_bytes())
            .and_then(|()| file.write_all(&text))
            .map_err(|source| Error::io(path, source))?;
        let missing =
            offsets.into_iter().map(|(name, at, size)| (name, (data_start + at as u64, size))).collect();
        Ok(Shard { path: path.to_path_buf(), file, missing })
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        match self.missing.get(name) {
            Some((_, size)) if *size != bytes.len() => {
                Err(Error::tensor(name, format!("wanted {size} bytes, came {}", bytes.len())))
            }
            _ => self.write_part(name, bytes),
        }
    }

    fn write_part(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let (offset, left) =
            self.missing.get_mut(name).ok_or_else(|| Error::tensor(name, "is written twice"))?;
        if bytes.len() > *left {
            return Err(Error::tensor(name, format!("wanted {left} bytes more, came {}", bytes.len())));
        }
        self.file
            .seek(SeekFrom::Start(*offset))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(|source| Error::io(&self.path, source))?;
        *offset += bytes.len() as u64;
        *left -= bytes.len();
        if *left == 0 {
            self.missing.remove(name);
        }
        Ok(())
    }
}

fn size_of_tensor(info: &TensorInfo) -> Result<usize> {
    let size = info.dtype.size_bytes(&info.shape);
    size.ok_or_else(|| {
        Error::tensor(&info.name, format!("shape {:?} of {} is impossible", info.shape, info.dtype))
    })
}

fn dtype_name(dtype: Dtype, tensor: &str) -> Result<&'static str> {
    dtype.safetensors_name().ok_or_else(|| {
        Error::tensor(tensor, format!("safetensors files do not hold {dtype}; pass --dtype f32, bf16 or f16"))
    })
}

fn refuse_twice(infos: &[TensorInfo]) -> Result<()> {
    let mut seen = HashSet::new();
    match infos.iter().find(|info| info.name == "__metadata__" || !seen.insert(info.name.as_str())) {
        Some(info) => Err(Error::tensor(&info.name, "would stand twice in the file")),
        None => Ok(()),
    }
}

fn plan_shards(infos: &[TensorInfo], max_shard_bytes: Option<usize>) -> Result<Vec<&[TensorInfo]>> {
    let Some(max_shard_bytes) = max_shard_bytes else { return Ok(vec![infos]) };
    let mut groups = Vec::new();
    let (mut start, mut filled) = (0, 0usize);
    for (idx, info) in infos.iter().enumerate() {
        let size = size_of_tensor(info)?;
        if idx > start && filled.saturating_add(size) > max_shard_bytes {
            groups.push(&infos[start..idx]);
            (start, filled) = (idx, 0);
        }
        filled = filled.saturating_add(size);
    }
    groups.push(&infos[start..]);
    Ok(groups)
}
