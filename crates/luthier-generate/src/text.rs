//! Decoding as text: streamed piece by piece, ended by stop strings.

use std::ops::ControlFlow;

use luthier_arch::model::Model;
use luthier_text::Tokenizer;

use crate::Result;
use crate::generate::{Aids, generate_with};
use crate::options::{FinishReason, GenerateOptions, Generation};
use crate::stop::StopStrings;

/// Continues `prompt_ids` as [`generate_with`] does and calls `on_text` with each piece of text once it is certain;
/// `Break` ends decoding. Gives the whole text too.
///
/// Special tokens are left out of the text. It ends before a stop string; the tokens of the stop string are in
/// `token_ids`, which hold all that was decoded. An incomplete character at the end comes as U+FFFD.
///
/// # Errors
/// Those of [`generate_with`].
pub fn generate_text(
    model: &dyn Model,
    tokenizer: &Tokenizer,
    prompt_ids: &[u32],
    decoder_ids: Option<&[u32]>,
    options: &GenerateOptions,
    aids: Aids,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<(Generation, String)> {
    options.check()?;
    let without_stop = GenerateOptions { stop: Vec::new(), ..options.clone() };
    let mut decoder = tokenizer.decoder();
    let mut watch = StopStrings::new(&options.stop);
    let mut text = String::new();
    let mut give = |piece: String, text: &mut String| {
        if piece.is_empty() {
            return ControlFlow::Continue(());
        }
        text.push_str(&piece);
        on_text(&piece)
    };
    let mut generation = generate_with(model, prompt_ids, decoder_ids, &without_stop, aids, &mut |id| {
        if options.is_end(id) {
            return ControlFlow::Continue(());
        }
        let Some(piece) = decoder.push(id) else { return ControlFlow::Continue(()) };
        let flow = give(watch.push(&piece), &mut text);
        if watch.found() { ControlFlow::Break(()) } else { flow }
    })?;
    if !watch.found() {
        let last = decoder.flush().map(|piece| watch.push(&piece)).unwrap_or_default();
        let held = if watch.found() { String::new() } else { watch.finish() };
        let _ = give(last + &held, &mut text);
    }
    if watch.found() {
        generation.finish_reason = FinishReason::StopString;
    }
    Ok((generation, text))
}
