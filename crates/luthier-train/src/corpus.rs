//! Texts to token streams: documents, split in training and validation, tokenized one by one.
//!
//! A document gets the start token before it and the end token behind it where the tokenizer names them; one without
//! tokens is left out.

use luthier_text::Tokenizer;
use luthier_text::corpus::{self, Source, Split};

use crate::recipe::Recipe;
use crate::windows::TokenStream;
use crate::{Error, Result};

/// The token streams of a recipe's texts.
pub(crate) struct Streams {
    pub(crate) train: TokenStream,
    pub(crate) validation: TokenStream,
}

/// Splits and tokenizes the texts of the recipe's sources.
pub(crate) fn tokenize(
    recipe: &Recipe,
    train: &[String],
    validation: &[String],
    tokenizer: &Tokenizer,
) -> Result<Streams> {
    let train = documents(&recipe.data.train, train)?;
    let Split { train, validation } = match recipe.data.validation_fraction {
        None => Split { train, validation: documents(&recipe.data.validation, validation)? },
        Some(fraction) => corpus::split(train, fraction, recipe.seed)?,
    };
    let stream = |documents: &[String]| -> Result<TokenStream> {
        let tokenized =
            documents.iter().map(|document| tokens(document, tokenizer)).collect::<Result<Vec<_>>>()?;
        Ok(TokenStream::new(tokenized))
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
        if student.encode(&sample)? != teacher.encode(&sample)? {
            let what =
                "splits the training text into other tokens than the student; they must share a tokenizer";
            return Err(Error::recipe("teacher", what));
        }
    }
    Ok(())
}

const SAMPLE_CHARS: usize = 4096;

fn documents(sources: &[Source], texts: &[String]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for (source, text) in sources.iter().zip(texts) {
        all.extend(corpus::documents_of(source, text)?);
    }
    Ok(all)
}

fn tokens(document: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let body = tokenizer.encode(document)?;
    if body.is_empty() {
        return Ok(body);
    }
    Ok(tokenizer.bos().into_iter().chain(body).chain(tokenizer.eos()).collect())
}
