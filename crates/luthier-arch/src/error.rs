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

impl Error {
    /// A key of config.json that is missing or makes no sense.
    pub(crate) fn config(key: impl Into<String>, what: impl Into<String>) -> Error {
        Error::Checkpoint(luthier_checkpoint::Error::Config { key: key.into(), what: what.into() })
    }

    /// A tensor that is missing, has another shape or type than wanted, or holds bad values.
    pub(crate) fn tensor(name: impl Into<String>, what: impl Into<String>) -> Error {
        Error::Checkpoint(luthier_checkpoint::Error::Tensor { name: name.into(), what: what.into() })
    }
}
