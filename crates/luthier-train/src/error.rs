//! What can go wrong in a training run; each message names the key, file or step, what was wanted and what to do.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of a training run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A recipe key whose value makes no sense, alone or beside another.
    #[error("recipe key {key}: {what}")]
    Recipe {
        /// The key, dotted where nested.
        key: String,
        /// What was wanted, what came, what to do.
        what: String,
    },
    /// `out` holds an unfinished or finished run of another recipe.
    #[error(
        "{out}: recipe key {key} is {now}, but the run in there was started with {before}; \
         use that value again, another out, or --force to start over",
        out = out.display()
    )]
    OtherRecipe {
        /// The run's folder.
        out: PathBuf,
        /// The first key that differs.
        key: String,
        /// Its value in the folder's run.
        before: String,
        /// Its value in this recipe.
        now: String,
    },
    /// `out` holds something that no training run wrote.
    #[error(
        "{out}: already exists and is no training run; choose another out{force}",
        out = out.display(),
        force = if *is_model { ", or replace the model in it with --force" } else { "" }
    )]
    NotARun {
        /// The folder.
        out: PathBuf,
        /// Whether a model lies there, which --force replaces.
        is_model: bool,
    },
    /// Another process trains into `out`.
    #[error("{out}: another process is training into it; wait for it, or choose another out", out = out.display())]
    Locked {
        /// The run's folder.
        out: PathBuf,
    },
    /// The loss or the gradient stopped being a number.
    #[error(
        "step {step}: {what} is {value}, the run ends here; {kept}; try a lower lr_peak, a longer warm-up or a smaller gradient_clip"
    )]
    Diverged {
        /// The step that went wrong.
        step: u64,
        /// `loss`, `gradient norm`, `validation loss` or `a weight`.
        what: &'static str,
        /// What it came to.
        value: f64,
        /// Where the last good weights are.
        kept: String,
    },
    /// Text, windows or batches that cannot be trained on.
    #[error("{what}")]
    Data {
        /// What was wanted, what came, what to do.
        what: String,
    },
    /// A file of a run that is not what it should be.
    #[error("{path}: {what}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was wanted, what came, what to do.
        what: String,
    },
    /// The system refused to read or write.
    #[error("{path}: {source}{advice}", path = path.display(), advice = luthier_checkpoint::error::advice(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Opening a model or a teacher.
    #[error("{place}: {source}")]
    Open {
        /// The MODEL as the recipe gives it.
        place: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// From the texts.
    #[error(transparent)]
    Text(#[from] luthier_text::TextError),
    /// From the tensors.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// From the model.
    #[error(transparent)]
    Model(#[from] luthier_arch::Error),
    /// From the checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] luthier_checkpoint::Error),
}

impl Error {
    pub(crate) fn recipe(key: &str, what: impl Into<String>) -> Error {
        Error::Recipe { key: key.to_string(), what: what.into() }
    }

    pub(crate) fn data(what: impl Into<String>) -> Error {
        Error::Data { what: what.into() }
    }

    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { path, source }
    }
}
