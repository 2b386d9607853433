//! The JSON header of a safetensors file, checked against the length of the file before anything is believed.

use std::fmt;
use std::ops::Range;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::{Dtype, TensorInfo};

/// Longest header that is read; the reference implementation has the same limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderEntry {
    /// Name, type and shape.
    pub info: TensorInfo,
    /// Where its bytes stand, counted from the start of the file.
    pub range: Range<usize>,
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `__metadata__`, in file order.
    pub metadata: Vec<(String, String)>,
    /// All tensors, by offset.
    pub entries: Vec<HeaderEntry>,
}

impl Header {
    /// Reads and checks the header of a whole file. The error says what is wrong; the caller adds the file's name.
    pub fn parse(file: &[u8]) -> Result<Header, String> {
        let Some((length, rest)) = file.split_first_chunk::<8>() else {
            return Err(format!("wanted 8 bytes of header length, the file has {} bytes", file.len()));
        };
        let length = u64::from_le_bytes(*length);
        if length > rest.len() as u64 {
            return Err(format!(
                "the header length says {length} bytes, the file has {} after it; it is cut off or no safetensors file",
                rest.len()
            ));
        }
        if length > MAX_HEADER_BYTES {
            return Err(format!("the header length says {length} bytes, the limit is {MAX_HEADER_BYTES}"));
        }
        let (json, data) = rest.split_at(length as usize);
        let raw: RawHeader = serde_json::from_slice(json).map_err(|problem| format!("header: {problem}"))?;
        let entries = checked_entries(raw.tensors, 8 + length as usize, data.len())?;
        Ok(Header { metadata: raw.metadata, entries })
    }
}

fn checked_entries(
    raw: Vec<(String, RawEntry)>,
    data_start: usize,
    data_len: usize,
) -> Result<Vec<HeaderEntry>, String> {
    let mut entries = Vec::with_capacity(raw.len());
    for (name, RawEntry { dtype, shape, data_offsets: [start, end] }) in raw {
        let Some(dtype) = Dtype::from_safetensors_name(&dtype) else {
            return Err(format!(
                "tensor {name}: type {dtype:?} is not read; convert it with the tool that wrote it"
            ));
        };
        if start > end || end > data_len {
            return Err(format!(
                "tensor {name}: bytes {start}..{end} lie outside the {data_len} bytes of data; the file is cut off or its \
                 header lies"
            ));
        }
        let Some(size) = dtype.size_bytes(&shape) else {
            return Err(format!("tensor {name}: shape {shape:?} of {dtype} is impossible"));
        };
        if size != end - start {
            return Err(format!(
                "tensor {name}: shape {shape:?} of {dtype} needs {size} bytes, its offsets give {}",
                end - start
            ));
        }
        let range = data_start + start..data_start + end;
        entries.push(HeaderEntry { info: TensorInfo { name, dtype, shape }, range });
    }
    entries.sort_by_key(|entry| (entry.range.start, entry.range.end));
    let mut at = data_start;
    for entry in &entries {
        if entry.range.start != at {
            let how = if entry.range.start < at {
                "overlaps the tensor before it"
            } else {
                "leaves a gap before it"
            };
            return Err(format!(
                "tensor {}: starts at byte {} of the file and {how}, which ends at {at}",
                entry.info.name, entry.range.start
            ));
        }
        at = entry.range.end;
    }
    if at != data_start + data_len {
        return Err(format!(
            "{} bytes after the last tensor belong to none; the file or its header is damaged",
            data_start + data_len - at
        ));
    }
    Ok(entries)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

struct RawHeader {
    metadata: Vec<(String, String)>,
    tensors: Vec<(String, RawEntry)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawHeader, D::Error> {
        deserializer.deserialize_map(RawHeaderVisitor)
    }
}

struct RawHeaderVisitor;

impl<'de> Visitor<'de> for RawHeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut metadata = None;
        let mut tensors = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if metadata.replace(map.next_value::<UniqueMap<String>>()?.0).is_some() {
                    return Err(A::Error::custom("__metadata__ stands there twice"));
                }
                continue;
            }
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("tensor {name} stands there twice")));
            }
            tensors.push((name, map.next_value::<RawEntry>()?));
        }
        Ok(RawHeader { metadata: metadata.unwrap_or_default(), tensors })
    }
}

/// A JSON object whose keys are in file order and unique.
pub(super) struct UniqueMap<T>(pub(super) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for UniqueMap<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<UniqueMap<T>, D::Error> {
        struct UniqueVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for UniqueVisitor<T> {
            type Value = UniqueMap<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap<T>, A::Error> {
                let mut pairs = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format_args!("key {key} stands there twice")));
                    }
                    pairs.push((key, value));
                }
                Ok(UniqueMap(pairs))
            }
        }
        deserializer.deserialize_map(UniqueVisitor(std::marker::PhantomData))
    }
}
