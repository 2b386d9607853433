//! Texts to token streams: split in training and validation, tokenized document by document.

use luthier_text::Tokenizer;

use crate::recipe::Recipe;
use crate::windows::TokenStream;
use crate::{Error, Result};

/// The token streams of a recipe's texts.
pub(crate) struct Streams {
    pub(crate) train: TokenStream,
    pub(crate) validation: TokenStream,
}

/// Tokenizes the texts, each one document, with the start and end tokens that the tokenizer names.
pub(crate) fn tokenize(
    recipe: &Recipe,
    train: &[String],
    validation: &[String],
    tokenizer: &Tokenizer,
) -> Result<Streams> {
    let (train, validation): (Vec<&str>, Vec<&str>) = match recipe.data.validation_fraction {
        None => (train.iter().map(String::as_str).collect(), validation.iter().map(String::as_str).collect()),
        Some(fraction) => train.iter().map(|text| split_at_paragraph(text, fraction)).unzip(),
    };
    let stream = |texts: &[&str]| -> Result<TokenStream> {
        let documents = texts.iter().map(|text| document(text, tokenizer)).collect::<Result<Vec<_>>>()?;
        Ok(TokenStream::new(documents))
    };
    Ok(Streams { train: stream(&train)?, validation: stream(&validation)? })
}

/// A teacher must read every text as the student does; a sample of the texts decides.
pub(crate) fn check_same_tokenizer(
    texts: &[String],
    student: &Tokenizer,
    teacher: Option<&Tokenizer>,
) -> Result<()> {
    let Some(teacher) = teacher else { return Ok(()) };
    for text in texts {
        let sample: String = text.chars().take(SAMPLE_CHARS).collect();
        if encode(&sample, student)? != encode(&sample, teacher)? {
            let what =
                "splits the training text into other tokens than the student; they must share a tokenizer";
            return Err(Error::recipe("teacher", what));
        }
    }
    Ok(())
}

const SAMPLE_CHARS: usize = 4096;

fn document(text: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let body = encode(text, tokenizer)?;
    if body.is_empty() {
        return Ok(body);
    }
    Ok(tokenizer.bos().into_iter().chain(body).chain(tokenizer.eos()).collect())
}

fn encode(text: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    tokenizer.encode(text).map_err(|error| Error::data(error.to_string()))
}

/// The last `fraction` of the text, from the paragraph that begins nearest to it.
fn split_at_paragraph(text: &str, fraction: f64) -> (&str, &str) {
    let wanted = ((1.0 - fraction) * text.len() as f64) as usize;
    let at = text.match_indices("\n\n").map(|(at, _)| at + 2).min_by_key(|at| at.abs_diff(wanted));
    text.split_at(at.unwrap_or(text.len()))
}
