//! What can go wrong with a tokenizer, a template or a text, told with the file, the key and the way out.

/// Every error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// No file of the folder holds a tokenizer.
    #[error("no tokenizer: looked for {wanted}, found {found}; add one of them to the model folder")]
    MissingTokenizer {
        /// The names that were looked for.
        wanted: String,
        /// The names that the folder has.
        found: String,
    },
    /// A file that should describe a tokenizer, a template or a text cannot be read as one.
    #[error("{file}: {reason}")]
    Broken {
        /// The file's name, or the GGUF key.
        file: String,
        /// What was wanted and what came.
        reason: String,
    },
    /// The tokenizer gives ids for which the model has no embedding row.
    #[error(
        "the tokenizer does not fit the model: its highest token id is {highest} ({token:?}), \
         the model's vocabulary has {vocab_size} rows; use the tokenizer that belongs to these weights"
    )]
    DoesNotFit {
        /// The highest id of the tokenizer.
        highest: u32,
        /// The token with that id.
        token: String,
        /// Rows of the embedding table.
        vocab_size: usize,
    },
    /// The text cannot be turned into tokens, or the tokens into text.
    #[error("the tokenizer cannot {action}: {reason}")]
    Tokenizing {
        /// `encode` or `decode`.
        action: &'static str,
        /// The tokenizer's own words.
        reason: String,
    },
    /// A pre-tokenizer, model type or kind of file for which no rule is known.
    #[error("{what} {name:?} is not known; known: {known}")]
    Unknown {
        /// What kind of name it is.
        what: &'static str,
        /// The name that came.
        name: String,
        /// The names that are known.
        known: String,
    },
    /// A chat template fails, or raises an exception of its own.
    #[error("chat template: {0}")]
    Template(String),
    /// The text of a corpus is not UTF-8.
    #[error("{file}: not UTF-8 at byte {offset} (0x{byte:02x}); convert the file to UTF-8")]
    NotUtf8 {
        /// The file's path as given.
        file: String,
        /// The first byte that is not part of a character.
        offset: usize,
        /// That byte.
        byte: u8,
    },
    /// A file cannot be read.
    #[error("{file}: {source}")]
    Io {
        /// The file's path as given.
        file: String,
        /// The system's own words.
        source: std::io::Error,
    },
    /// Tokenizers that cannot be put together.
    #[error("tokenizers cannot be put together: {0}")]
    Union(String),
    /// A corpus cannot give what was asked of it.
    #[error("corpus: {0}")]
    Corpus(String),
}

impl TextError {
    /// A [`TextError::Broken`] from anything that can be shown.
    pub(crate) fn broken(file: impl Into<String>, reason: impl std::fmt::Display) -> TextError {
        TextError::Broken { file: file.into(), reason: reason.to_string() }
    }
}

/// Result with this crate's error.
pub type Result<T> = std::result::Result<T, TextError>;
