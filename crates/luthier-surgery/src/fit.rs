//! Whether the files of a model fit together, and those of two models, from headers and side files alone.

use std::collections::BTreeMap;

use luthier_checkpoint::Checkpoint;
use luthier_checkpoint::layout::{Layout, Part, StackKind};
use luthier_text::{TextError, Tokenizer};

use crate::{Error, Input, Result};

/// The layout of a model whose tensors are those that its config describes and whose tokenizer has an embedding row for
/// every token.
pub(crate) fn checked_layout(checkpoint: &Checkpoint) -> Result<Layout> {
    let layout = luthier_arch::check_headers(checkpoint)?;
    if let Some(tokenizer) = tokenizer(checkpoint)? {
        tokenizer.check_fits(vocab_size(&layout))?;
    }
    Ok(layout)
}

/// Refuses a tied weight that the files carry twice with different values: one of the two would be lost. A model whose
/// architecture is not known says nothing of ties.
pub(crate) fn check_ties(checkpoint: &Checkpoint) -> Result<()> {
    match luthier_arch::check_ties(checkpoint) {
        Err(luthier_arch::Error::UnknownArchitecture { .. }) => Ok(()),
        Err(_) if !checkpoint.config.contains_key("model_type") => Ok(()),
        other => Ok(other?),
    }
}

/// Rows of the embedding of the stack that predicts tokens, or of the only one.
pub(crate) fn vocab_size(layout: &Layout) -> usize {
    let mut embeddings = layout.tensors.iter().filter(|spec| spec.role.part == Part::Embedding);
    let decoder = embeddings.clone().find(|spec| spec.role.stack == StackKind::Decoder);
    decoder.or_else(|| embeddings.next()).map_or(0, |spec| spec.shape[0])
}

/// What a model whose config.json does not say what it is was taken for.
pub(crate) fn recognised_type(checkpoint: &Checkpoint) -> Option<String> {
    let folder = match checkpoint.place.is_dir() {
        true => checkpoint.place.as_path(),
        false if luthier_checkpoint::torch::is_torch_name(&checkpoint.place) => checkpoint.place.parent()?,
        false => return None,
    };
    let written = luthier_checkpoint::folder::read_config(&folder.join("config.json")).ok()?;
    let model_type = checkpoint.config.get("model_type").filter(|_| !written.contains_key("model_type"))?;
    Some(format!(
        "config.json names no model_type; the tensors are those of {}, under which outputs name it",
        model_type.as_str()?
    ))
}

/// The tokenizer among the side files; none where there is none.
pub(crate) fn tokenizer(checkpoint: &Checkpoint) -> Result<Option<Tokenizer>> {
    let files: BTreeMap<String, Vec<u8>> =
        checkpoint.side_files.iter().map(|file| (file.name.clone(), file.bytes.clone())).collect();
    match Tokenizer::from_files(&files) {
        Ok(tokenizer) => Ok(Some(tokenizer)),
        Err(TextError::MissingTokenizer { .. }) => Ok(None),
        Err(TextError::Broken { file, reason }) if checkpoint.place.is_dir() => {
            let file = checkpoint.place.join(file).display().to_string();
            Err(TextError::Broken { file, reason }.into())
        }
        Err(problem) => Err(problem.into()),
    }
}

/// Refuses an encoder and a decoder that read different tokens.
pub(crate) fn same_vocabulary(encoder: (&Input, &Layout), decoder: (&Input, &Layout)) -> Result<()> {
    let refused = |what: &str, encoder_value: String, decoder_value: String| Error::Parents {
        what: what.to_string(),
        encoder: format!("{encoder_value} ({})", encoder.0.label),
        decoder: format!("{decoder_value} ({})", decoder.0.label),
    };
    let (rows_a, rows_b) = (vocab_size(encoder.1), vocab_size(decoder.1));
    if rows_a != rows_b {
        return Err(refused("vocabulary size", rows_a.to_string(), rows_b.to_string()));
    }
    let (Some(a), Some(b)) = (tokenizer(&encoder.0.checkpoint)?, tokenizer(&decoder.0.checkpoint)?) else {
        return Ok(());
    };
    match first_token_difference(&a, &b) {
        Some((id, [a, b])) => Err(refused(&format!("token {id}"), a, b)),
        None => Ok(()),
    }
}

/// The first token that two tokenizers spell differently, and how each does.
pub(crate) fn first_token_difference(a: &Tokenizer, b: &Tokenizer) -> Option<(u32, [String; 2])> {
    let spelled = |token: Option<String>| token.map_or("none".to_string(), |token| format!("{token:?}"));
    let id = (0..a.vocab_size().max(b.vocab_size()) as u32).find(|&id| a.token(id) != b.token(id))?;
    Some((id, [a, b].map(|tokenizer| spelled(tokenizer.token(id)))))
}
