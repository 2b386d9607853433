//! Writes GGUF version 3, one tensor at a time and in any order; the header is known before the first byte.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{DEFAULT_ALIGNMENT, GgufArray, GgufValue};
use crate::early_sync::EarlySync;
use crate::{Error, Result, TensorInfo, TensorSink};

/// ggml keeps names in 64 bytes, a closing zero among them.
const MAX_NAME_BYTES: usize = 63;

/// A GGUF file being written.
pub struct GgufWriter {
    path: PathBuf,
    file: File,
    missing: HashMap<String, (u64, usize)>,
    len: u64,
    early_sync: EarlySync,
}

impl GgufWriter {
    /// Begins a file with all its metadata, in the order and types given; `general.alignment` is honoured.
    pub fn create(path: &Path, metadata: &[(String, GgufValue)], infos: &[TensorInfo]) -> Result<GgufWriter> {
        let alignment = alignment_of(path, metadata)?;
        let (header, offsets, data_len) = header_bytes(metadata, infos, alignment)?;
        let mut file = File::create(path).map_err(|source| Error::io(path, source))?;
        file.write_all(&header).map_err(|source| Error::io(path, source))?;
        let data_start = header.len() as u64;
        let mut missing = HashMap::with_capacity(infos.len());
        for (info, (offset, size)) in infos.iter().zip(offsets) {
            if missing.insert(info.name.clone(), (data_start + offset, size)).is_some() {
                return Err(Error::tensor(&info.name, "would stand twice in the file"));
            }
        }
        let len = data_start + data_len;
        Ok(GgufWriter { path: path.to_path_buf(), file, missing, len, early_sync: EarlySync::default() })
    }

    /// Length of the file that these make, to the byte.
    pub fn file_bytes(metadata: &[(String, GgufValue)], infos: &[TensorInfo]) -> Result<u64> {
        let alignment = alignment_of(Path::new("the file"), metadata)?;
        let (header, _, data_len) = header_bytes(metadata, infos, alignment)?;
        Ok(header.len() as u64 + data_len)
    }

    /// Bytes that a tensor takes in a file with these metadata, padding included; none for shapes that its type cannot hold.
    pub fn tensor_bytes(metadata: &[(String, GgufValue)], info: &TensorInfo) -> Result<Option<u64>> {
        let alignment = alignment_of(Path::new("the file"), metadata)?;
        let size = info.dtype.size_bytes(&info.shape);
        Ok(size.and_then(|size| (size as u64).checked_next_multiple_of(alignment as u64)))
    }

    /// Writes the header again with other metadata of the same length: what was not known at the beginning is filled in.
    pub fn replace_metadata(&mut self, metadata: &[(String, GgufValue)], infos: &[TensorInfo]) -> Result<()> {
        let alignment = alignment_of(&self.path, metadata)?;
        let (header, _, data_len) = header_bytes(metadata, infos, alignment)?;
        assert_eq!(header.len() as u64 + data_len, self.len, "the header keeps its length");
        self.file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(&header))
            .map_err(|source| Error::io(&self.path, source))
    }
}

impl TensorSink for GgufWriter {
    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let place = self.missing.remove(name);
        let (offset, size) = place
            .ok_or_else(|| Error::tensor(name, "is not among those to be written, or is written twice"))?;
        if size != bytes.len() {
            return Err(Error::tensor(name, format!("wanted {size} bytes, came {}", bytes.len())));
        }
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(|source| Error::io(&self.path, source))?;
        self.early_sync.wrote(&self.file, bytes.len());
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        if let Some(name) = self.missing.keys().min() {
            return Err(Error::tensor(name, format!("was never written to {}", self.path.display())));
        }
        // The padding after the last tensor belongs to the format.
        self.file
            .set_len(self.len)
            .and_then(|()| self.file.flush())
            .and_then(|()| self.early_sync.finish())
            .map_err(|source| Error::io(&self.path, source))
    }
}

fn alignment_of(path: &Path, metadata: &[(String, GgufValue)]) -> Result<usize> {
    match metadata.iter().find(|(key, _)| key == "general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some((_, GgufValue::U32(alignment))) if alignment.is_power_of_two() && *alignment <= 1 << 24 => {
            Ok(*alignment as usize)
        }
        Some((_, other)) => Err(Error::format(
            path,
            format!("metadata key general.alignment is {other:?}; wanted a U32 power of two up to 16777216"),
        )),
    }
}

type Offsets = Vec<(u64, usize)>;

/// The bytes up to the first tensor, each tensor's offset and size, and the padded length of the data.
fn header_bytes(
    metadata: &[(String, GgufValue)],
    infos: &[TensorInfo],
    alignment: usize,
) -> Result<(Vec<u8>, Offsets, u64)> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend((infos.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_entry(&mut bytes, key, value);
    }
    let mut offsets = Vec::with_capacity(infos.len());
    let mut offset = 0u64;
    for info in infos {
        let name = &info.name;
        let type_id = info.dtype.ggml_id().ok_or_else(|| {
            Error::tensor(
                name,
                format!("GGUF files do not hold {}; leave the tensor out or cast it", info.dtype),
            )
        })?;
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::tensor(name, format!("the name has more than {MAX_NAME_BYTES} bytes")));
        }
        if info.shape.len() > 4 {
            return Err(Error::tensor(
                name,
                format!("shape {:?}; GGUF files hold 4 axes at most", info.shape),
            ));
        }
        let size = info.dtype.size_bytes(&info.shape).ok_or_else(|| {
            Error::tensor(name, format!("shape {:?} of {} is impossible", info.shape, info.dtype))
        })?;
        put_string(&mut bytes, name);
        bytes.extend((info.shape.len() as u32).to_le_bytes());
        info.shape.iter().rev().for_each(|&axis| bytes.extend((axis as u64).to_le_bytes()));
        bytes.extend(type_id.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offsets.push((offset, size));
        offset = (size as u64)
            .checked_next_multiple_of(alignment as u64)
            .and_then(|padded| offset.checked_add(padded))
            .ok_or_else(|| Error::tensor(name, "the file is too large"))?;
    }
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
    Ok((bytes, offsets, offset))
}

/// One entry of the metadata.
pub(super) fn put_entry(bytes: &mut Vec<u8>, key: &str, value: &GgufValue) {
    put_string(bytes, key);
    bytes.extend(value.type_id().to_le_bytes());
    put_value(bytes, value);
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn put_value(bytes: &mut Vec<u8>, value: &GgufValue) {
    match value {
        GgufValue::U8(value) => bytes.extend(value.to_le_bytes()),
        GgufValue::I8(value) => bytes.extend(value.to_le_bytes()),
        GgufValue::U16(value) => bytes.extend(value.to_le_bytes()),
        GgufValue::I16(value) => bytes.extend(value.to_le_bytes()),
        GgufValue::U32(value) => bytes.extend(value.to_le_bytes()),
        GgufValue::I32(value) => bytes.extend(value.to_le_bytes()),
        GgufValue::F32(value) => bytes.extend(value.to_le_bytes()),
        GgufValue::Bool(value) => bytes.push(u8::from(*value)),
        GgufValue::String(text) => put_string(bytes, text),
        GgufValue::Array(array) => put_array(bytes, array),
        GgufValue::U64(value) => bytes.extend(value.to_le_bytes()),
        GgufValue::I64(value) => bytes.extend(value.to_le_bytes()),
        GgufValue::F64(value) => bytes.extend(value.to_le_bytes()),
    }
}

fn put_array(bytes: &mut Vec<u8>, array: &GgufArray) {
    bytes.extend(array.type_id().to_le_bytes());
    bytes.extend((array.len() as u64).to_le_bytes());
    match array {
        GgufArray::U8(values) => bytes.extend(values),
        GgufArray::I8(values) => bytes.extend(values.iter().map(|&value| value as u8)),
        GgufArray::U16(values) => values.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
        GgufArray::I16(values) => values.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
        GgufArray::U32(values) => values.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
        GgufArray::I32(values) => values.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
        GgufArray::F32(values) => values.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
        GgufArray::Bool(values) => bytes.extend(values.iter().map(|&value| u8::from(value))),
        GgufArray::String(texts) => texts.iter().for_each(|text| put_string(bytes, text)),
        GgufArray::Array(arrays) => arrays.iter().for_each(|array| put_array(bytes, array)),
        GgufArray::U64(values) => values.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
        GgufArray::I64(values) => values.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
        GgufArray::F64(values) => values.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
    }
}
