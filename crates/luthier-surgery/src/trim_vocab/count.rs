//! How often texts use each token.

use std::collections::HashMap;
use std::sync::OnceLock;

use luthier_kernels::pool;
use luthier_text::corpus::{self, Source};
use luthier_text::{TextError, Tokenizer};
use serde::Serialize;

use super::refused;
use crate::Result;

/// Longer documents are cut, at line ends, into parts of about this size that are encoded one by one.
const PART_BYTES: usize = 1 << 16;

/// Tokens by how often a text uses them.
pub(super) struct Ranking {
    name: String,
    /// Most frequent first; of equals the one that comes first in the texts, as lm-vocab-trimmer has it.
    pub(super) tokens: Vec<(u32, u64)>,
    /// Of all tokens.
    pub(super) total: u64,
}

/// What was counted, and what of it is kept.
#[derive(Clone, Debug, Serialize)]
pub struct CorpusReport {
    /// `corpus`, or the name of a further text.
    pub name: String,
    /// Tokens of the texts.
    pub tokens: u64,
    /// Different ones.
    pub distinct_tokens: usize,
    /// Different ones that are kept.
    pub kept_distinct_tokens: usize,
    /// Share of the texts' tokens that are kept.
    pub coverage: f64,
}

impl Ranking {
    /// Counts the tokens of texts, start and end tokens apart. Refuses texts without any.
    pub(super) fn count(tokenizer: &Tokenizer, name: &str, sources: &[Source]) -> Result<Ranking> {
        let documents = corpus::read_all(sources)?;
        let parts: Vec<&str> = documents.iter().flat_map(|document| parts(document)).collect();
        let mut counts: HashMap<u32, (usize, u64)> = HashMap::new();
        for ids in encode_all(tokenizer, &parts)? {
            for id in ids {
                let place = counts.len();
                counts.entry(id).or_insert((place, 0)).1 += 1;
            }
        }
        let mut tokens: Vec<(u32, (usize, u64))> = counts.into_iter().collect();
        tokens.sort_unstable_by_key(|(_, (place, count))| (std::cmp::Reverse(*count), *place));
        let tokens: Vec<(u32, u64)> = tokens.into_iter().map(|(id, (_, count))| (id, count)).collect();
        let total = tokens.iter().map(|(_, count)| count).sum();
        if total == 0 {
            let names: Vec<String> =
                sources.iter().map(|source| source.path().display().to_string()).collect();
            return Err(refused(format!(
                "{}: no token in it; wanted a text in the model's language",
                names.join(", ")
            )));
        }
        Ok(Ranking { name: name.to_string(), tokens, total })
    }

    pub(super) fn report(&self, kept: &[u32]) -> CorpusReport {
        let is_kept = |(id, _): &&(u32, u64)| kept.binary_search(id).is_ok();
        let covered: u64 = self.tokens.iter().filter(is_kept).map(|(_, count)| count).sum();
        CorpusReport {
            name: self.name.clone(),
            tokens: self.total,
            distinct_tokens: self.tokens.len(),
            kept_distinct_tokens: self.tokens.iter().filter(is_kept).count(),
            coverage: covered as f64 / self.total as f64,
        }
    }
}

/// The ids of each text, on all threads.
pub(super) fn encode_all(tokenizer: &Tokenizer, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
    let slots: Vec<OnceLock<std::result::Result<Vec<u32>, TextError>>> =
        texts.iter().map(|_| OnceLock::new()).collect();
    pool::run(texts.len(), &|at| _ = slots[at].set(tokenizer.encode(texts[at])));
    let done = slots.into_iter().map(|slot| slot.into_inner().expect("every text is encoded"));
    Ok(done.collect::<std::result::Result<_, TextError>>()?)
}

/// A document, or parts of a long one.
fn parts(document: &str) -> Vec<&str> {
    let (mut parts, mut rest) = (Vec::new(), document);
    while rest.len() > PART_BYTES {
        let start = rest.ceil_char_boundary(PART_BYTES);
        let Some(end) = rest[start..].find('\n').map(|at| start + at + 1) else { break };
        parts.push(&rest[..end]);
        rest = &rest[end..];
    }
    parts.push(rest);
    parts
}
