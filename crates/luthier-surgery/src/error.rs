//! What surgery refuses; each message says what was wanted, what came, and what to do.

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of a verb.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A checkpoint is at fault, or cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] luthier_checkpoint::Error),
    /// A model cannot be built or run.
    #[error(transparent)]
    Architecture(#[from] luthier_arch::Error),
    /// A tokenizer is broken, or does not fit the weights.
    #[error(transparent)]
    Text(#[from] luthier_text::TextError),
    /// Two parents that do not go together.
    #[error(
        "{what}: the encoder's parent has {encoder}, the decoder's parent has {decoder}; take two models of one \
         tokenizer, or give one of them the other's first"
    )]
    Parents {
        /// What differs.
        what: String,
        /// What the encoder's parent has.
        encoder: String,
        /// What the decoder's parent has.
        decoder: String,
    },
    /// A check of the finished result that did not hold; nothing is left behind.
    #[error("{check}: wanted {wanted}, came {came}; nothing was written")]
    Check {
        /// What was checked.
        check: String,
        /// The bound.
        wanted: String,
        /// What was measured.
        came: String,
    },
    /// A use that this verb cannot serve.
    #[error("{0}")]
    Use(String),
}
