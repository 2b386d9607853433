//! The zip archive around a newer PyTorch file: where each stored entry's bytes lie.
//!
//! Only what PyTorch writes: entries stored without compression, with or without zip64 sizes. Source: APPNOTE.TXT of
//! PKWARE, sections 4.3 and 4.5.3.

use std::collections::HashMap;
use std::ops::{Deref, Range};

const END_SIGNATURE: u32 = 0x0605_4b50;
const END_BYTES: usize = 22;
const END64_LOCATOR_SIGNATURE: u32 = 0x0706_4b50;
const END64_LOCATOR_BYTES: usize = 20;
const END64_SIGNATURE: u32 = 0x0606_4b50;
const END64_BYTES: usize = 56;
const ENTRY_SIGNATURE: u32 = 0x0201_4b50;
const ENTRY_BYTES: usize = 46;
const LOCAL_SIGNATURE: u32 = 0x0403_4b50;
const LOCAL_BYTES: usize = 30;
const MAX_COMMENT_BYTES: usize = u16::MAX as usize;

/// Where an entry's bytes lie in the file, and their CRC-32. Ranges lie inside the file and do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The bytes.
    pub range: Range<usize>,
    /// What the archive says it is. 0 where PyTorch was told not to compute it (`set_crc32_options(False)`).
    pub crc32: u32,
}

impl Stored {
    /// Whether these are the bytes that were stored, as far as the archive says. `pieces` gives them one after another.
    pub(super) fn holds<B: Deref<Target = [u8]>>(&self, pieces: impl Iterator<Item = B>) -> bool {
        if self.crc32 == 0 {
            return true;
        }
        let mut hasher = crc32fast::Hasher::new();
        pieces.for_each(|piece| hasher.update(&piece));
        hasher.finalize() == self.crc32
    }
}

/// Entries by name.
pub(super) type Entries<'f> = HashMap<&'f str, Stored>;

/// Reads the central directory. Refuses compressed or encrypted entries, names that stand twice, and ranges that overlap.
pub(super) fn entries(file: &[u8]) -> Result<Entries<'_>, String> {
    let directory = Directory::find(file)?;
    let mut entries = HashMap::new();
    let mut taken = Vec::new();
    let mut at = directory.start;
    for number in 0..directory.n_entries {
        let entry = CentralEntry::parse(file, at, directory.end)
            .map_err(|what| format!("entry {number} of the archive: {what}"))?;
        let data = entry.data(file, directory.start)?;
        taken.push((entry.local..data.end, entry.name));
        let stored = Stored { range: data, crc32: entry.crc32 };
        if entries.insert(entry.name, stored).is_some() {
            return Err(format!("the archive holds {} twice", entry.name));
        }
        at = entry.next;
    }
    taken.sort_by_key(|(range, _)| (range.start, range.end));
    match taken.windows(2).find(|pair| pair[1].0.start < pair[0].0.end) {
        Some(pair) => Err(format!("{} and {} overlap in the archive", pair[0].1, pair[1].1)),
        None => Ok(entries),
    }
}

/// Where the central directory lies.
struct Directory {
    start: usize,
    end: usize,
    n_entries: u64,
}

impl Directory {
    fn find(file: &[u8]) -> Result<Directory, String> {
        let cut = || "the archive has no end; the file is cut off, download or save it again".to_string();
        let last = file.len().checked_sub(END_BYTES).ok_or_else(cut)?;
        let first = last.saturating_sub(MAX_COMMENT_BYTES);
        let is_end = |&at: &usize| {
            u32_at(file, at) == Some(END_SIGNATURE)
                && u16_at(file, at + 20)
                    .is_some_and(|comment| at + END_BYTES + usize::from(comment) == file.len())
        };
        let end = (first..=last).rev().find(is_end).ok_or_else(cut)?;
        let small = |at: usize| u32_at(file, end + at).map(u64::from).ok_or_else(cut);
        let (mut n_entries, mut size, mut start) =
            (u64::from(u16_at(file, end + 10).ok_or_else(cut)?), small(12)?, small(16)?);
        let mut limit = end;
        if let Some(locator) = end.checked_sub(END64_LOCATOR_BYTES)
            && u32_at(file, locator) == Some(END64_LOCATOR_SIGNATURE)
        {
            let broken = || "the archive's zip64 end is broken; download or save it again".to_string();
            let end64 = u64_at(file, locator + 8).and_then(to_usize).ok_or_else(broken)?;
            let fits = end64.checked_add(END64_BYTES).is_some_and(|after| after <= locator);
            if !fits || u32_at(file, end64) != Some(END64_SIGNATURE) {
                return Err(broken());
            }
            let large = |at: usize| u64_at(file, end64 + at).ok_or_else(broken);
            (n_entries, size, start, limit) = (large(32)?, large(40)?, large(48)?, end64);
        }
        let range = to_usize(start).and_then(|start| Some((start, start.checked_add(to_usize(size)?)?)));
        let fitting = range.filter(|(_, end)| *end <= limit);
        let (start, end) =
            fitting.ok_or("the archive's directory lies outside the file; it is cut off or damaged")?;
        if n_entries > ((end - start) / ENTRY_BYTES) as u64 {
            return Err(format!("the archive states {n_entries} entries, more than its directory can hold"));
        }
        Ok(Directory { start, end, n_entries })
    }
}

/// One entry of the central directory.
struct CentralEntry<'f> {
    name: &'f str,
    crc32: u32,
    local: usize,
    size: usize,
    next: usize,
}

impl<'f> CentralEntry<'f> {
    fn parse(file: &'f [u8], at: usize, limit: usize) -> Result<CentralEntry<'f>, String> {
        let cut = || "is cut off".to_string();
        if at.checked_add(ENTRY_BYTES).is_none_or(|end| end > limit) {
            return Err(cut());
        }
        if u32_at(file, at) != Some(ENTRY_SIGNATURE) {
            return Err("does not begin as one".to_string());
        }
        let half = |offset: usize| u16_at(file, at + offset).map(usize::from).ok_or_else(cut);
        let word = |offset: usize| u32_at(file, at + offset).map(u64::from).ok_or_else(cut);
        let (name_len, extra_len, comment_len) = (half(28)?, half(30)?, half(32)?);
        let name_start = at + ENTRY_BYTES;
        let extra_start = name_start + name_len;
        let next = extra_start + extra_len + comment_len;
        if next > limit {
            return Err(cut());
        }
        let name = std::str::from_utf8(&file[name_start..extra_start])
            .map_err(|_| "has a name that is not UTF-8".to_string())?;
        if half(8)? & 1 != 0 {
            return Err(format!("{name} is encrypted; save it again with torch.save"));
        }
        if half(10)? != 0 {
            return Err(format!(
                "{name} is compressed, which torch.save never does; unpack the archive and zip it with -0, or save it \
                 again with torch.save"
            ));
        }
        let crc32 = u32_at(file, at + 16).ok_or_else(cut)?;
        let mut sizes = [word(24)?, word(20)?, word(42)?];
        widen(&mut sizes, &file[extra_start..extra_start + extra_len])
            .ok_or_else(|| format!("{name} lacks its zip64 sizes"))?;
        let [size, stored, local] = sizes.map(to_usize);
        match (size, stored, local) {
            (Some(size), Some(stored), Some(local)) if size == stored => {
                Ok(CentralEntry { name, crc32, local, size, next })
            }
            _ => Err(format!("{name} states two lengths, or one that cannot be")),
        }
    }

    /// The range of the entry's bytes, which the header before them says where they begin.
    fn data(&self, file: &[u8], directory: usize) -> Result<Range<usize>, String> {
        let name = self.name;
        let broken = || format!("{name} lies outside the archive; the file is cut off or damaged");
        if self.local.checked_add(LOCAL_BYTES).is_none_or(|end| end > directory) {
            return Err(broken());
        }
        if u32_at(file, self.local) != Some(LOCAL_SIGNATURE) {
            return Err(format!("{name} does not begin where the archive's directory says"));
        }
        let length = |offset: usize| u16_at(file, self.local + offset).map(usize::from).ok_or_else(broken);
        let name_start = self.local + LOCAL_BYTES;
        let name_end = name_start + length(26)?;
        let start = name_end + length(28)?;
        let end = start.checked_add(self.size).filter(|end| *end <= directory).ok_or_else(broken)?;
        if file.get(name_start..name_end) != Some(name.as_bytes()) {
            return Err(format!("{name} has another name where its bytes lie"));
        }
        Ok(start..end)
    }
}

/// Replaces the values (size, stored size, place) that do not fit 32 bits by those of the zip64 field, which holds only
/// these, in this order.
fn widen(values: &mut [u64; 3], mut extra: &[u8]) -> Option<()> {
    if values.iter().all(|value| *value != u64::from(u32::MAX)) {
        return Some(());
    }
    while extra.len() >= 4 {
        let (id, len) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
        let mut field = extra.get(4..4 + len)?;
        if id == 1 {
            for value in values.iter_mut().filter(|value| **value == u64::from(u32::MAX)) {
                *value = u64_at(field, 0)?;
                field = &field[8..];
            }
            return Some(());
        }
        extra = &extra[4 + len..];
    }
    None
}

fn to_usize(value: u64) -> Option<usize> {
    usize::try_from(value).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
