//! What trimming made of a model's size, in the terms of lm-vocab-trimmer's cards.

use luthier_checkpoint::layout::{Layout, Space};
use serde::Serialize;

/// Sizes of a model.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Card {
    /// Weights, each tied one counted once.
    pub parameter_size_full: usize,
    /// Those of them that belong to tokens: embeddings, heads and their biases.
    pub parameter_size_embedding: usize,
    /// Rows of tokens.
    pub vocab_size: usize,
    /// Percent of the input's weights.
    pub compression_rate_full: f64,
    /// Percent of the input's weights of tokens.
    pub compression_rate_embedding: f64,
}

impl Card {
    pub(super) fn of(layout: &Layout) -> Card {
        let is_of_tokens = |spaces: &[Space]| spaces.contains(&Space::Vocab);
        let of_tokens = layout.tensors.iter().filter(|spec| is_of_tokens(&spec.spaces));
        let rows = of_tokens.clone().flat_map(|spec| spec.shape.iter().zip(&spec.spaces));
        Card {
            parameter_size_full: layout.parameters(),
            parameter_size_embedding: of_tokens
                .clone()
                .map(|spec| spec.shape.iter().product::<usize>())
                .sum(),
            vocab_size: rows
                .filter(|(_, space)| **space == Space::Vocab)
                .map(|(rows, _)| *rows)
                .max()
                .unwrap_or(0),
            compression_rate_full: 100.0,
            compression_rate_embedding: 100.0,
        }
    }

    /// The same model with `rows` rows of tokens.
    pub(super) fn with_rows(&self, rows: usize) -> Card {
        let of_tokens = self.parameter_size_embedding / self.vocab_size * rows;
        let others = self.parameter_size_full - self.parameter_size_embedding;
        let cut = Card {
            parameter_size_full: others + of_tokens,
            parameter_size_embedding: of_tokens,
            vocab_size: rows,
            ..*self
        };
        cut.against(self)
    }

    fn against(self, before: &Card) -> Card {
        let percent = |after: usize, before: usize| 100.0 * after as f64 / before as f64;
        Card {
            compression_rate_full: percent(self.parameter_size_full, before.parameter_size_full),
            compression_rate_embedding: percent(
                self.parameter_size_embedding,
                before.parameter_size_embedding,
            ),
            ..self
        }
    }
}

/// The model's own card with a section on the trimming behind it.
pub(super) fn readme(card: &[u8], model: &str, before: &Card, after: &Card) -> Vec<u8> {
    let mut text = String::from_utf8_lossy(card).into_owned();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!(
        "\n## Trimmed vocabulary\n\nThe vocabulary of {model} was cut to the tokens that some texts need, by luthier; all that \
         stands above speaks of the model before that.\n\n| | before | after |\n|---|---|---|\n"
    ));
    for (name, before, after) in [
        ("parameter_size_full", before.parameter_size_full, after.parameter_size_full),
        ("parameter_size_embedding", before.parameter_size_embedding, after.parameter_size_embedding),
        ("vocab_size", before.vocab_size, after.vocab_size),
    ] {
        text.push_str(&format!("| {name} | {before} | {after} |\n"));
    }
    for (name, before, after) in [
        ("compression_rate_full", before.compression_rate_full, after.compression_rate_full),
        ("compression_rate_embedding", before.compression_rate_embedding, after.compression_rate_embedding),
    ] {
        text.push_str(&format!("| {name} | {before:.2} | {after:.2} |\n"));
    }
    text.into_bytes()
}
