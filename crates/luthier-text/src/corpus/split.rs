//! Puts some of a corpus aside for validation.

use crate::error::{Result, TextError};

/// Training and validation texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// What is trained on, in the order in which it came.
    pub train: Vec<String>,
    /// What is only measured on, in the order in which it came.
    pub validation: Vec<String>,
}

/// Below this number of validation documents whole documents are too coarse a measure.
const MIN_DOCUMENTS: usize = 4;

/// Splits off about `fraction` of the text (by bytes).
///
/// Whole documents go to one side, by the hash of `seed` and their text, so that equal documents go to the
/// same side and adding documents moves none. Where that would give fewer than four validation documents, each
/// document is cut instead: its last `fraction`, from the nearest blank line on. Refuses a fraction that is not
/// between 0 and 1, and a corpus of which nothing can be put aside.
pub fn split(documents: Vec<String>, fraction: f64, seed: u64) -> Result<Split> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(TextError::Corpus(format!(
            "validation_fraction: wanted a number between 0 and 1, came {fraction}"
        )));
    }
    let threshold = (fraction * u64::MAX as f64) as u64;
    if documents.iter().all(|document| document.trim().is_empty()) {
        return Err(TextError::Corpus(
            "data.train: the texts are empty; name files that hold text".to_owned(),
        ));
    }
    let is_validation = |document: &String| hash(document.as_bytes(), seed) < threshold;
    let by_document = documents.iter().filter(|document| is_validation(document)).count();
    let expected = documents.len() as f64 * fraction;
    let parts = if expected >= MIN_DOCUMENTS as f64 && by_document > 0 && by_document < documents.len() {
        let (validation, train) = documents.into_iter().partition(is_validation);
        Split { train, validation }
    } else {
        at_paragraphs(&documents, fraction)
    };
    if parts.train.is_empty() || parts.validation.is_empty() {
        let what =
            "validation_fraction: the texts have no blank line at which to part them; name validation files";
        return Err(TextError::Corpus(what.to_owned()));
    }
    Ok(parts)
}

/// Cuts each document where a paragraph begins, nearest to the wanted place.
fn at_paragraphs(documents: &[String], fraction: f64) -> Split {
    let mut parts = Split::default();
    for document in documents {
        let wanted = ((1.0 - fraction) * document.len() as f64) as usize;
        let starts = document.match_indices("\n\n").map(|(at, blank)| at + blank.len());
        let at = starts.filter(|at| *at < document.len()).min_by_key(|at| at.abs_diff(wanted));
        let (train, validation) = document.split_at(at.unwrap_or(document.len()));
        parts.train.push(train.to_owned());
        parts.validation.push(validation.to_owned());
    }
    let is_text = |document: &String| !document.trim().is_empty();
    parts.train.retain(is_text);
    parts.validation.retain(is_text);
    parts
}

/// FNV-1a over the bytes, stirred with the seed: stable over versions and machines.
fn hash(bytes: &[u8], seed: u64) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold) ^ mix(seed))
}

/// SplitMix64's output function (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
fn mix(mut state: u64) -> u64 {
    state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}
