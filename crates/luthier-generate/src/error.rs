//! What can go wrong between a prompt and its continuation.

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of decoding.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model refused.
    #[error(transparent)]
    Model(#[from] luthier_arch::Error),
    /// A file of a prompt's state was refused.
    #[error(transparent)]
    Checkpoint(#[from] luthier_checkpoint::Error),
    /// The tensor engine refused.
    #[error(transparent)]
    Engine(#[from] candle_core::Error),
    /// An option is outside of its range.
    #[error("option {name}: expected {expected}, got {got}")]
    Option {
        /// The option's name, as in the recipe.
        name: &'static str,
        /// Its range.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// There is nothing to continue.
    #[error(
        "{input} holds no token; give at least one (a tokenizer with a start token adds it to an empty text)"
    )]
    Empty {
        /// `prompt` or `decoder tokens`.
        input: &'static str,
    },
    /// A token id that the model does not have.
    #[error(
        "{input}: token id {id} at position {position} is outside of the model's vocabulary of {vocab_size}"
    )]
    TokenId {
        /// `prompt` or `decoder tokens`.
        input: &'static str,
        /// The id.
        id: u32,
        /// Where it stands, from 0.
        position: usize,
        /// Entries of the model's embedding.
        vocab_size: usize,
    },
    /// More tokens than the model has positions.
    #[error("{input} has {tokens} tokens, but the model's context holds {context_length}; shorten it")]
    ContextLength {
        /// `prompt` or `decoder tokens`.
        input: &'static str,
        /// What came.
        tokens: usize,
        /// Positions of the model.
        context_length: usize,
    },
    /// Decoder tokens for a model without an encoder.
    #[error("decoder tokens were given, but {model_type} is decoder-only; put them into the prompt")]
    DecoderTokens {
        /// config.json's.
        model_type: String,
    },
    /// An encoder-decoder whose config does not say how its decoder starts.
    #[error(
        "config key decoder_start_token_id: missing; give the decoder's input yourself (--decoder-tokens)"
    )]
    NoDecoderStart,
    /// The model computed something that is no number.
    #[error(
        "logits at position {position} hold {value} for token id {id}; the weights are damaged or out of range"
    )]
    Logits {
        /// Position in the decoder's input, from 0.
        position: usize,
        /// The first token concerned.
        id: usize,
        /// NaN or infinity.
        value: f32,
    },
}
