//! The container of PyTorch before 1.6 (and of `_use_new_zipfile_serialization=False`): pickles and storages one after
//! another.

use std::collections::HashMap;
use std::ops::Range;

use super::pickle::{Unpickled, unpickle};
use super::state;
use super::value::{Node, Storage, Value};

/// What the first of the pickles holds, as a pickle: the number 0x1950a86a20f9469cfc6c.
const MAGIC: [u8; 12] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// What the second holds.
const FORMAT_VERSION: i64 = 1001;

/// Whether a file begins as one.
pub(super) fn is_legacy(file: &[u8]) -> bool {
    file.len() > 2 && file[0] == 0x80 && file[2..].starts_with(&MAGIC)
}

/// The pickle of the tensors, and each storage's range in the file.
pub(super) fn read(file: &[u8]) -> Result<(Unpickled<'_>, HashMap<&str, Range<usize>>), String> {
    let mut at = 0;
    let mut next = || -> Result<Unpickled<'_>, String> {
        let unpickled = unpickle(&file[at..])?;
        at += unpickled.len;
        Ok(unpickled)
    };
    next()?;
    match next()?.value {
        Value::Int(FORMAT_VERSION) => {}
        other => return Err(format!("wanted version {FORMAT_VERSION} of the format, came {other:?}")),
    }
    refuse_big_endian(&next()?)?;
    let tensors = next()?;
    state::state_dict(&tensors)?;
    let keys = next()?;
    let ranges = ranges(file, at, &keys, &storages(&tensors)?)?;
    Ok((tensors, ranges))
}

fn refuse_big_endian(system: &Unpickled) -> Result<(), String> {
    let Value::Node(at) = system.value else { return Err("the note of the system is missing".to_string()) };
    let Node::Dict(pairs) = &system.nodes[at] else {
        return Err("the note of the system is missing".to_string());
    };
    let is_little = pairs.iter().find(|(key, _)| *key == Value::Text("little_endian"));
    match is_little {
        Some((_, Value::Bool(true))) => Ok(()),
        _ => Err("was saved on a big-endian machine; save it again on a little-endian one".to_string()),
    }
}

/// Every storage that the tensors name. Refuses one that is described in two ways.
pub(super) fn storages<'p>(tensors: &Unpickled<'p>) -> Result<HashMap<&'p str, Storage<'p>>, String> {
    let mut storages: HashMap<&str, Storage> = HashMap::new();
    for node in &tensors.nodes {
        let Node::Storage(storage) = node else { continue };
        let known = storages.entry(storage.key).or_insert(*storage);
        if (known.dtype, known.len) != (storage.dtype, storage.len) {
            return Err(format!("storage {} is described in two ways", storage.key));
        }
    }
    Ok(storages)
}

/// Storages lie in the order of the list of keys, each behind its number of values.
fn ranges<'p>(
    file: &[u8],
    mut at: usize,
    keys: &Unpickled<'p>,
    storages: &HashMap<&str, Storage>,
) -> Result<HashMap<&'p str, Range<usize>>, String> {
    let list = match keys.value {
        Value::Node(at) => match &keys.nodes[at] {
            Node::List(list) => Some(list),
            _ => None,
        },
        _ => None,
    };
    let mut ranges = HashMap::new();
    for key in list.ok_or("wanted a list of storages after the tensors")? {
        let Value::Text(key) = *key else { return Err("a storage's name is not text".to_string()) };
        let storage = storages.get(key).ok_or_else(|| format!("storage {key} belongs to no tensor"))?;
        let cut = || format!("storage {key} is cut off; download or save the file again");
        let start = at.checked_add(8).filter(|start| *start <= file.len()).ok_or_else(cut)?;
        let stated = i64::from_le_bytes(file[at..start].try_into().expect("eight bytes were taken"));
        if usize::try_from(stated) != Ok(storage.len) {
            return Err(format!("storage {key} has {stated} values, its tensors want {}", storage.len));
        }
        let size = storage.len.checked_mul(storage.value_bytes()).ok_or_else(cut)?;
        let end = start.checked_add(size).filter(|end| *end <= file.len()).ok_or_else(cut)?;
        if ranges.insert(key, start..end).is_some() {
            return Err(format!("storage {key} stands twice in the file"));
        }
        at = end;
    }
    if at != file.len() {
        return Err(format!("{} bytes follow the last storage; the file is damaged", file.len() - at));
    }
    Ok(ranges)
}
