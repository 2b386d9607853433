//! What a PyTorch file holds: every tensor, and where and how its values lie.

use std::collections::BTreeMap;
use std::ops::Range;

use super::pickle::{Unpickled, unpickle};
use super::value::{Storage, Tensor};
use super::zip::{self, Stored};
use super::{legacy, state, strided};
use crate::TensorInfo;

/// The largest pickle that is read; one of 100,000 tensors has some 30 MB.
const MAX_PICKLE_BYTES: usize = 256 << 20;

/// A tensor whose values repeat those of its storage may be this large; `expand` makes such ones, of a few bytes.
const MAX_REPEATED_BYTES: usize = 64 << 20;

/// A checked file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// In the file's order.
    pub entries: Vec<HeaderEntry>,
    /// The storages that the tensors lie in, by their place in the file, where the container has checksums of them.
    pub storages: Vec<Stored>,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderEntry {
    /// Name, type and shape.
    pub info: TensorInfo,
    /// The bytes of the file from its first value to its last; several tensors may share some (tied weights, views).
    pub range: Range<usize>,
    /// Values from one index of an axis to the next; none where the values lie one after another.
    pub strides: Option<Vec<usize>>,
}

impl Header {
    /// Reads the header of a file of either container. The error says what is wrong; the caller adds the file's name.
    pub fn parse(file: &[u8]) -> Result<Header, String> {
        if file.starts_with(b"PK") {
            return from_zip(file);
        }
        if legacy::is_legacy(file) {
            let (tensors, ranges) = legacy::read(file)?;
            return header(&tensors, &|storage| {
                // This container has no checksums.
                let stored = ranges.get(storage.key).map(|range| Stored { range: range.clone(), crc32: 0 });
                stored.ok_or_else(|| format!("storage {} is not in the file", storage.key))
            });
        }
        Err(match file.get(257..262) {
            Some(b"ustar") => {
                "is a tar archive of PyTorch before 0.1.10, which is not read; save it again with torch.save"
                    .to_string()
            }
            _ if file.first() == Some(&0x80) => {
                "is a plain pickle, which torch.save did not make; save the weights with torch.save"
                    .to_string()
            }
            _ => "is no file of torch.save; it is damaged, or something else".to_string(),
        })
    }
}

fn from_zip(file: &[u8]) -> Result<Header, String> {
    let entries = zip::entries(file)?;
    let mut roots = entries.keys().filter_map(|name| name.strip_suffix("/data.pkl"));
    let root = match (roots.next(), roots.next()) {
        (Some(root), None) => root,
        (None, _) => return Err("the archive holds no data.pkl; torch.save did not make it".to_string()),
        (Some(_), Some(_)) => return Err("the archive holds more than one data.pkl".to_string()),
    };
    if entries.contains_key(format!("{root}/constants.pkl").as_str()) {
        return Err("is a TorchScript program; load it in PyTorch and save its state_dict()".to_string());
    }
    let entry = |name: &str| entries.get(format!("{root}/{name}").as_str()).cloned();
    if let Some(order) = entry("byteorder")
        && &file[order.range] != b"little"
    {
        return Err("was saved on a big-endian machine; save it again on a little-endian one".to_string());
    }
    let stored = entry("data.pkl").expect("the root was found by it");
    let pickle = stored.range.clone();
    if pickle.len() > MAX_PICKLE_BYTES {
        return Err(format!(
            "data.pkl has {} bytes, more than the {MAX_PICKLE_BYTES} that are read",
            pickle.len()
        ));
    }
    if !stored.holds(std::iter::once(&file[pickle.clone()])) {
        return Err("data.pkl has another checksum than the archive says; the file is damaged, download or save it again"
            .to_string());
    }
    let tensors = unpickle(&file[pickle.clone()])?;
    if tensors.len != pickle.len() {
        return Err(format!("{} bytes follow the pickle; the file is damaged", pickle.len() - tensors.len));
    }
    legacy::storages(&tensors)?;
    header(&tensors, &|storage| {
        let Storage { key, len, .. } = *storage;
        let stored = entry(&format!("data/{key}"));
        let stored = stored.ok_or_else(|| format!("storage {key} is not in the archive"))?;
        let n_bytes = stored.range.len();
        if len.checked_mul(storage.value_bytes()) != Some(n_bytes) {
            let what = format!("storage {key} has {n_bytes} bytes, its tensors want {len} values");
            return Err(format!("{what}; the file is damaged"));
        }
        Ok(stored)
    })
}

type Find<'f> = &'f dyn Fn(&Storage) -> Result<Stored, String>;

/// The tensors of a pickle, in the storages that `find` finds.
fn header(unpickled: &Unpickled, find: Find) -> Result<Header, String> {
    let tensors = state::state_dict(unpickled)?;
    let (mut entries, mut storages) = (Vec::with_capacity(tensors.len()), BTreeMap::new());
    for (name, tensor) in tensors {
        let storage = find(&tensor.storage).map_err(|what| format!("tensor {name}: {what}"))?;
        let entry = entry(name, tensor, storage.range.clone());
        if storage.crc32 != 0 {
            storages.insert(storage.range.start, storage);
        }
        // A stride of zero lets a few bytes state any size.
        let copied = entry.size_bytes();
        if copied > entry.range.len().saturating_mul(2) && copied > MAX_REPEATED_BYTES {
            return Err(format!(
                "tensor {name}: shape {:?} repeats a few stored values, {copied} bytes; save its values with .contiguous()",
                entry.info.shape
            ));
        }
        entries.push(entry);
    }
    Ok(Header { entries, storages: storages.into_values().collect() })
}

fn entry(name: &str, tensor: &Tensor, storage: Range<usize>) -> HeaderEntry {
    let Tensor { dtype, offset, shape, strides, .. } = tensor;
    let value_bytes = dtype.block().1;
    let part = tensor.storage.part.map_or(0, |(start, _)| start * tensor.storage.value_bytes());
    let start = storage.start + part + offset * value_bytes;
    let reach = match shape.contains(&0) {
        true => 0,
        false => 1 + shape.iter().zip(strides).map(|(axis, stride)| (axis - 1) * stride).sum::<usize>(),
    };
    let contiguous = strided::is_contiguous(shape, strides);
    HeaderEntry {
        info: TensorInfo { name: name.to_string(), dtype: *dtype, shape: shape.clone() },
        range: start..start + reach * value_bytes,
        strides: (!contiguous).then(|| strides.clone()),
    }
}

impl HeaderEntry {
    /// Bytes of the tensor when its values lie one after another.
    pub fn size_bytes(&self) -> usize {
        self.info.dtype.size_bytes(&self.info.shape).expect("sizes were checked when the tensor was read")
    }
}
