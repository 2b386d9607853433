//! Opens and checks a GGUF file; its tensors are pieces of the mapped file.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use luthier_kernels::bytes::SharedBytes;

use super::cursor::Cursor;
use super::split::Split;
use super::{DEFAULT_ALIGNMENT, GgufValue};
use crate::mapped::MappedFile;
use crate::{Dtype, Error, Result, TensorInfo, TensorSource};

/// Axes that a tensor of ggml has at most.
const MAX_AXES: u32 = 4;

/// A GGUF file, or all files of one that is split. As a [`TensorSource`] it speaks GGUF's own names; shapes are outermost
/// axis first, as everywhere here (the file has them the other way round).
pub struct Gguf {
    /// 2 or 3.
    pub version: u32,
    /// Keys and values in file order; of a split file those of the first part, but for the keys that number the parts.
    pub metadata: Vec<(String, GgufValue)>,
    /// `general.alignment`, or 32.
    pub alignment: usize,
    infos: Vec<TensorInfo>,
    /// Part and range of each tensor.
    ranges: HashMap<String, (usize, Range<usize>)>,
    parts: Vec<Arc<MappedFile>>,
}

impl Gguf {
    /// Maps and checks a file. Of a split one it takes the first part and finds the others beside it.
    pub fn open(path: &Path) -> Result<Gguf> {
        let (map, header) = open_part(path)?;
        let split = Split::of(&header.metadata).map_err(|what| Error::format(path, what))?;
        let Header { version, metadata, alignment, entries } = header;
        let mut gguf = Gguf {
            version,
            metadata,
            alignment,
            infos: Vec::with_capacity(entries.len()),
            ranges: HashMap::with_capacity(entries.len()),
            parts: Vec::new(),
        };
        gguf.add_part(map, entries)?;
        if let Some(split) = split {
            gguf.metadata.retain(|(key, _)| !key.starts_with("split."));
            gguf.add_others(path, split)?;
        }
        Ok(gguf)
    }

    fn add_others(&mut self, first: &Path, split: Split) -> Result<()> {
        let paths = split.paths(first).map_err(|what| Error::format(first, what))?;
        for (number, path) in paths.iter().enumerate().skip(1) {
            let of = format!("part {} of {} of {}", number + 1, split.count, first.display());
            if !path.exists() {
                return Err(Error::format(path, format!("is missing: {of}; put it beside the others")));
            }
            let (map, header) = open_part(path)?;
            let came = Split::of(&header.metadata).map_err(|what| Error::format(path, what))?;
            match came {
                Some(came) if (came.number, came.count) == (number, split.count) => {}
                Some(Split { number, count, .. }) => {
                    let what = format!("wanted {of}, its metadata say part {} of {count}", number + 1);
                    return Err(Error::format(path, what));
                }
                None => return Err(Error::format(path, format!("wanted {of}, its metadata name no part"))),
            }
            self.add_part(map, header.entries)?;
        }
        match split.n_tensors {
            Some(wanted) if wanted != self.infos.len() => {
                let came = self.infos.len();
                let what = format!("split.tensors.count is {wanted}, its {} parts hold {came}", split.count);
                Err(Error::format(first, what))
            }
            _ => Ok(()),
        }
    }

    fn add_part(&mut self, map: Arc<MappedFile>, entries: Vec<(TensorInfo, Range<usize>)>) -> Result<()> {
        let part = self.parts.len();
        for (info, range) in entries {
            if self.ranges.insert(info.name.clone(), (part, range)).is_some() {
                let what = format!("tensor {} stands in another part already", info.name);
                return Err(Error::format(map.path(), what));
            }
            self.infos.push(info);
        }
        self.parts.push(map);
        Ok(())
    }

    /// Where it lies: the file, or the first of its parts.
    pub fn path(&self) -> &Path {
        self.parts[0].path()
    }

    /// Every file of it.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| part.path())
    }

    /// The value of a metadata key.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Whether a file begins like GGUF.
    pub fn is_gguf(path: &Path) -> bool {
        let mut magic = [0u8; 4];
        let read =
            std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
        read.is_ok() && &magic == b"GGUF"
    }
}

impl TensorSource for Gguf {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let (part, range) = self
            .ranges
            .get(name)
            .ok_or_else(|| Error::tensor(name, format!("is not in {}", self.path().display())))?;
        Ok(self.parts[*part].share(range.clone()))
    }
}

fn open_part(path: &Path) -> Result<(Arc<MappedFile>, Header)> {
    let map = MappedFile::open(path)?;
    let header = Header::parse(map.bytes()).map_err(|what| Error::format(path, what))?;
    // What has been read is not read again: a piece gives its pages back.
    let end = header.entries.iter().map(|(_, range)| range.start).min().unwrap_or(map.bytes().len());
    drop(map.share(0..end));
    Ok((map, header))
}

/// Everything before the tensors' bytes, checked against the length of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Keys and values in file order.
    pub metadata: Vec<(String, GgufValue)>,
    /// `general.alignment`, or 32.
    pub alignment: usize,
    /// Each tensor and where its bytes stand, counted from the start of the file; in file order.
    pub entries: Vec<(TensorInfo, Range<usize>)>,
}

struct RawInfo {
    info: TensorInfo,
    offset: u64,
}

impl Header {
    /// Reads and checks the header of a whole file. The error says what is wrong; the caller adds the file's name.
    pub fn parse(file: &[u8]) -> std::result::Result<Header, String> {
        let mut cursor = Cursor::new(file);
        let magic: [u8; 4] = cursor.array()?;
        if &magic != b"GGUF" {
            return Err(format!("wanted the magic \"GGUF\", found {:?}", magic.escape_ascii().to_string()));
        }
        let version = cursor.u32()?;
        if version.swap_bytes() == 2 || version.swap_bytes() == 3 {
            return Err("is a big-endian GGUF file, which is not read; wanted little-endian".to_string());
        }
        if version != 2 && version != 3 {
            return Err(format!("GGUF version {version} is not read; wanted 2 or 3"));
        }
        // A tensor takes a name's length, a count of axes, a type and an offset at least; a key a length, a type, a byte.
        let n_tensors = cursor.u64()?;
        let n_metadata = cursor.count("metadata keys", 8 + 4 + 1)?;
        if n_tensors > (cursor.remaining() / 24) as u64 {
            return Err(format!(
                "says {n_tensors} tensors, the {} bytes left cannot hold their names; it is cut off or lies",
                cursor.remaining()
            ));
        }
        let metadata = read_metadata(&mut cursor, n_metadata)?;
        let alignment = read_alignment(&metadata)?;
        let mut raw = Vec::with_capacity(n_tensors as usize);
        for tensor_idx in 0..n_tensors {
            raw.push(read_info(&mut cursor).map_err(|what| format!("tensor number {tensor_idx}: {what}"))?);
        }
        let data_start = cursor.position().next_multiple_of(alignment);
        let entries = place_tensors(raw, data_start, alignment, file.len())?;
        Ok(Header { version, metadata, alignment, entries })
    }
}

fn read_metadata(cursor: &mut Cursor, count: usize) -> std::result::Result<Vec<(String, GgufValue)>, String> {
    let mut metadata = Vec::with_capacity(count);
    let mut seen = HashSet::new();
    for key_idx in 0..count {
        let key = cursor.string().map_err(|what| format!("metadata key number {key_idx}: {what}"))?;
        let value = cursor.value().map_err(|what| format!("metadata key {key}: {what}"))?;
        if !seen.insert(key.clone()) {
            return Err(format!("metadata key {key} stands there twice"));
        }
        metadata.push((key, value));
    }
    Ok(metadata)
}

fn read_alignment(metadata: &[(String, GgufValue)]) -> std::result::Result<usize, String> {
    let Some((_, value)) = metadata.iter().find(|(key, _)| key == "general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match value {
        GgufValue::U32(alignment) if alignment.is_power_of_two() && *alignment <= 1 << 24 => {
            Ok(*alignment as usize)
        }
        other => Err(format!(
            "metadata key general.alignment is {other:?}; wanted a U32 power of two up to 16777216"
        )),
    }
}

fn read_info(cursor: &mut Cursor) -> std::result::Result<RawInfo, String> {
    let name = cursor.string()?;
    let n_axes = cursor.u32()?;
    if n_axes > MAX_AXES {
        return Err(format!("tensor {name} has {n_axes} axes; wanted {MAX_AXES} at most"));
    }
    let mut shape = Vec::with_capacity(n_axes as usize);
    for _ in 0..n_axes {
        let axis = cursor.u64()?;
        shape.push(usize::try_from(axis).map_err(|_| format!("tensor {name}: axis {axis} is impossible"))?);
    }
    shape.reverse();
    let type_id = cursor.u32()?;
    let offset = cursor.u64()?;
    let Some(dtype) = Dtype::from_ggml_id(type_id) else {
        return Err(format!(
            "tensor {name}: ggml type {type_id} ({}) is not read; read are F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K to \
             Q6_K and plain numbers",
            ggml_name(type_id)
        ));
    };
    Ok(RawInfo { info: TensorInfo { name, dtype, shape }, offset })
}

fn place_tensors(
    raw: Vec<RawInfo>,
    data_start: usize,
    alignment: usize,
    file_len: usize,
) -> std::result::Result<Vec<(TensorInfo, Range<usize>)>, String> {
    let mut entries = Vec::with_capacity(raw.len());
    let mut seen = HashSet::new();
    for RawInfo { info, offset } in raw {
        let name = &info.name;
        if !seen.insert(name.clone()) {
            return Err(format!("tensor {name} stands there twice"));
        }
        let Some(size) = info.dtype.size_bytes(&info.shape) else {
            return Err(format!("tensor {name}: shape {:?} of {} is impossible", info.shape, info.dtype));
        };
        if !offset.is_multiple_of(alignment as u64) {
            return Err(format!(
                "tensor {name}: offset {offset} is no multiple of the alignment {alignment}"
            ));
        }
        let start = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(data_start));
        let end = start.and_then(|start| start.checked_add(size)).filter(|&end| end <= file_len);
        let (Some(start), Some(end)) = (start, end) else {
            return Err(format!(
                "tensor {name}: {size} bytes at offset {offset} after byte {data_start} end outside the file of {file_len} \
                 bytes; it is cut off or lies"
            ));
        };
        entries.push((info, start..end));
    }
    let mut by_start: Vec<usize> = (0..entries.len()).filter(|&idx| !entries[idx].1.is_empty()).collect();
    by_start.sort_by_key(|&idx| entries[idx].1.start);
    for pair in by_start.windows(2) {
        let (before, after) = (&entries[pair[0]], &entries[pair[1]]);
        if after.1.start < before.1.end {
            return Err(format!("tensor {} overlaps tensor {}", after.0.name, before.0.name));
        }
    }
    // Bytes that belong to no tensor mean a count or an offset that lies; ggml's own reader wants the same.
    let mut expected = data_start;
    for &idx in &by_start {
        let (info, range) = &entries[idx];
        if range.start != expected {
            return Err(format!(
                "tensor {}: begins at byte {}, the data before it ends at {expected}; a tensor is missing or an offset lies",
                info.name, range.start
            ));
        }
        expected = range.end.next_multiple_of(alignment);
    }
    if file_len > expected && !by_start.is_empty() {
        return Err(format!(
            "{} bytes after the last tensor belong to none; the tensor count lies",
            file_len - expected
        ));
    }
    Ok(entries)
}

/// ggml's name of a type that is not read.
fn ggml_name(type_id: u32) -> &'static str {
    match type_id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => "unknown",
    }
}
