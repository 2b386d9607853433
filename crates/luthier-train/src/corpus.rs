//! Texts to token streams: split in training and validation, tokenized document by document.
//!
//! A file is one document. It gets the start token before it and the end token behind it where the tokenizer names
//! them; a text without tokens is left out.

use luthier_text::Tokenizer;

use crate::random::{Purpose, Random};
use crate::recipe::Recipe;
use crate::windows::TokenStream;
use crate::{Error, Result};

/// The token streams of a recipe's texts.
pub(crate) struct Streams {
    pub(crate) train: TokenStream,
    pub(crate) validation: TokenStream,
}

/// Splits and tokenizes the texts.
pub(crate) fn tokenize(
    recipe: &Recipe,
    train: &[String],
    validation: &[String],
    tokenizer: &Tokenizer,
) -> Result<Streams> {
    let (train, validation): (Vec<&str>, Vec<&str>) = match recipe.data.validation_fraction {
        None => (train.iter().map(String::as_str).collect(), validation.iter().map(String::as_str).collect()),
        Some(fraction) => hold_out(train, fraction, recipe.seed),
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

/// Training and validation text: whole documents in a seeded order where some of them make up between half and one and
/// a half times the share that is wanted, otherwise the end of every document, from a paragraph on.
fn hold_out(texts: &[String], fraction: f64, seed: u64) -> (Vec<&str>, Vec<&str>) {
    let wanted_bytes = fraction * texts.iter().map(String::len).sum::<usize>() as f64;
    let mut order: Vec<usize> = (0..texts.len()).collect();
    Random::new(seed, Purpose::Validation, u64::MAX).shuffle(&mut order);
    let mut held_out = vec![false; texts.len()];
    let mut bytes = 0.0;
    for idx in order {
        let more = bytes + texts[idx].len() as f64;
        if bytes < wanted_bytes && more <= 1.5 * wanted_bytes {
            (held_out[idx], bytes) = (true, more);
        }
    }
    if bytes < 0.5 * wanted_bytes {
        return texts.iter().map(|text| split_at_paragraph(text, fraction)).unzip();
    }
    let part = |wanted: bool| {
        texts
            .iter()
            .zip(&held_out)
            .filter(|(_, held)| **held == wanted)
            .map(|(text, _)| text.as_str())
            .collect()
    };
    (part(false), part(true))
}

/// The last `fraction` of the text, from the beginning of the nearest paragraph on; of the nearest line or character
/// where there is one paragraph or line.
fn split_at_paragraph(text: &str, fraction: f64) -> (&str, &str) {
    let wanted = ((1.0 - fraction) * text.len() as f64) as usize;
    let nearest = |separator: &str| {
        let starts = text.match_indices(separator).map(|(at, found)| at + found.len());
        starts.filter(|&at| !text[at..].trim().is_empty()).min_by_key(|at| at.abs_diff(wanted))
    };
    let at = ["\n\n", "\r\n\r\n", "\n"].into_iter().find_map(nearest);
    text.split_at(at.unwrap_or_else(|| text.floor_char_boundary(wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_documents_are_held_out_whole() {
        let texts: Vec<String> = (0..50).map(|n| format!("document {n:02}")).collect();
        let (train, validation) = hold_out(&texts, 0.1, 3);
        assert_eq!((train.len(), validation.len()), (45, 5));
        assert!(validation.iter().all(|text| !train.contains(text)));
        assert_eq!(hold_out(&texts, 0.1, 3), (train, validation.clone()));
        assert_ne!(hold_out(&texts, 0.1, 4).1, validation);
    }

    #[test]
    fn few_documents_are_split_at_a_paragraph() {
        let text = "one one one.\n\ntwo two two.\n\nthree three.\n\nfour four.".to_string();
        let (train, validation) = hold_out(std::slice::from_ref(&text), 0.3, 1);
        assert_eq!(
            (train[0], validation[0]),
            ("one one one.\n\ntwo two two.\n\nthree three.\n\n", "four four.")
        );
        assert_eq!(split_at_paragraph("a\nb\nc\nd\n", 0.25), ("a\nb\nc\n", "d\n"));
        assert_eq!(split_at_paragraph("äöüß", 0.5), ("äö", "üß"));
    }
}
