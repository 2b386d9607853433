//! What can go wrong between a checkpoint and a running model.

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of loading or running a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint is at fault.
    #[error(transparent)]
    Checkpoint(#[from] luthier_checkpoint::Error),
    /// The tensor engine refused.
    #[error(transparent)]
    Engine(#[from] candle_core::Error),
    /// `model_type` names no architecture of the table.
    #[error("config key model_type: no architecture is called {model_type:?}; known: {known}")]
    UnknownArchitecture {
        /// What config.json says.
        model_type: String,
        /// The table.
        known: String,
    },
    /// The caller asked for something that this model cannot do.
    #[error("{0}")]
    Use(String),
}
