//! What can go wrong while measuring.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of measuring.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model refused.
    #[error(transparent)]
    Model(#[from] luthier_arch::Error),
    /// Decoding failed.
    #[error(transparent)]
    Generate(#[from] luthier_generate::Error),
    /// The text or its tokenizer is at fault.
    #[error(transparent)]
    Text(#[from] luthier_text::TextError),
    /// The tensor engine refused.
    #[error(transparent)]
    Engine(#[from] candle_core::Error),
    /// Fewer tokens than the measurement needs.
    #[error(
        "{source_name}: comes to {got_tokens} of the {wanted_tokens} tokens that are needed{why}; give a longer text{hint}"
    )]
    TooShort {
        /// The text's file.
        source_name: String,
        /// Tokens of the text.
        got_tokens: usize,
        /// Tokens that it takes.
        wanted_tokens: usize,
        /// What takes them.
        why: &'static str,
        /// What else helps.
        hint: &'static str,
    },
    /// An option that does not fit the model or another option.
    #[error("option {name}: expected {expected}, got {got}")]
    Option {
        /// The option's name.
        name: &'static str,
        /// What would fit.
        expected: String,
        /// What came.
        got: String,
    },
    /// A linear step for states of another width.
    #[error(
        "{module}: reads {wanted} values, a text's state has {width}; put the module of this model in its place"
    )]
    ModuleWidth {
        /// The module's folder.
        module: String,
        /// Values that it reads.
        wanted: usize,
        /// Values that there are.
        width: usize,
    },
    /// Two models that cannot be compared.
    #[error(
        "a vocabulary of {reference} tokens and one of {other} are not compared; take two models of one vocabulary"
    )]
    Vocabularies {
        /// Tokens of the reference.
        reference: usize,
        /// Tokens of the other.
        other: usize,
    },
    /// No token to compare models on.
    #[error("a comparison takes at least one token, the text has none; give a longer text")]
    NothingToCompare,
    /// The loss is no number.
    #[error(
        "the loss of the tokens from {first_token} on is {value}; the weights are damaged or out of range"
    )]
    NotFinite {
        /// Number of the first token of the window concerned.
        first_token: usize,
        /// NaN or infinity.
        value: f64,
    },
    /// An embedding is no vector of numbers.
    #[error("text {text}: its embedding holds {value}; the weights are damaged or out of range")]
    EmbeddingNotFinite {
        /// Which text, from 1 on.
        text: usize,
        /// NaN or infinity.
        value: f64,
    },
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file of measurements that is none.
    #[error("{}: {reason}", path.display())]
    Measurements {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A picture that could not be drawn.
    #[error("chart {title:?}: {reason}")]
    Chart {
        /// Its title.
        title: String,
        /// What the drawing library says.
        reason: String,
    },
}
