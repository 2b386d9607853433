//! Small tokenizers that tests are made with.

use std::collections::BTreeMap;

use luthier_text::train_bpe::{BpeTraining, train_bpe};

pub(crate) type Files = BTreeMap<String, Vec<u8>>;

pub(crate) const TEXT: &str = "The lute was old. The old luthier tuned the lute, and the lute sang.\n\n\
    In 1682 he mended 12 lutes; it's said that they'll sing still. Über Öfen, naïve cafés, 日本語 and 🎻.\n";

/// A byte-level tokenizer with Gemma's special tokens.
pub(crate) fn byte_level() -> Files {
    let training = BpeTraining { min_frequency: 1, ..BpeTraining::gemma_like(300) };
    train_bpe(&[TEXT], &training).expect("the text gives 40 merges")
}
