//! Checks a SentencePiece `precompiled_charsmap` before the normaliser walks it, which trusts its bytes.
//!
//! Layout: u32 size of the trie in bytes, the trie as a double array of u32 units (as in darts-clone), then
//! the replacement texts, each ended by a zero byte.

use crate::error::{Result, TextError};

const KEY: &str = "precompiled_charsmap";

/// Refuses a map whose trie or texts point outside of themselves.
pub(crate) fn check(bytes: &[u8]) -> Result<()> {
    let broken = |reason: String| Err(TextError::broken(KEY, reason));
    let Some((size, rest)) = bytes.split_first_chunk::<4>() else {
        return broken(format!("wanted a trie, came {} bytes", bytes.len()));
    };
    let size = u32::from_le_bytes(*size) as usize;
    if size == 0 || !size.is_multiple_of(4) || size > rest.len() {
        return broken(format!("the trie claims {size} bytes of the {} that follow", rest.len()));
    }
    let (trie, texts) = rest.split_at(size);
    let units: Vec<u32> =
        trie.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]])).collect();
    let Ok(texts) = std::str::from_utf8(texts) else {
        return broken("the replacement texts are not UTF-8".to_owned());
    };
    check_nodes(&units, texts)
}

/// Visits every node that a text can reach; all 256 units that the next byte may select must exist.
fn check_nodes(units: &[u32], texts: &str) -> Result<()> {
    let mut seen = vec![false; units.len()];
    let mut open = vec![offset(units[0])];
    while let Some(node) = open.pop() {
        if node | 0xff >= units.len() {
            return Err(TextError::broken(KEY, format!("the trie points at unit {node} of {}", units.len())));
        }
        if std::mem::replace(&mut seen[node], true) {
            continue;
        }
        for byte in 1..=255usize {
            let unit = units[node ^ byte];
            if unit as usize & ((1 << 31) | 0xff) != byte {
                continue;
            }
            let next = (node ^ byte) ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let text = units.get(next).map(|leaf| (leaf & 0x7fff_ffff) as usize);
                if !text.is_some_and(|at| texts.is_char_boundary(at)) {
                    return Err(TextError::broken(KEY, format!("unit {next} points outside the texts")));
                }
            }
            open.push(next);
        }
    }
    Ok(())
}

fn offset(unit: u32) -> usize {
    ((unit as usize) >> 10) << ((unit & (1 << 9)) >> 6)
}
