//! What can be wrong with a checkpoint; each message names the file, tensor or key, what was wanted and what came.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error about a checkpoint on disk or on a hub.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused to read or write.
    #[error("{path}: {source}{advice}", path = path.display(), advice = advice(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is not what its format says.
    #[error("{path}: {what}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was wanted, what came, what to do.
        what: String,
    },
    /// A tensor that is missing, has another shape or type than wanted, or holds bad values.
    #[error("tensor {name}: {what}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What was wanted, what came, what to do.
        what: String,
    },
    /// A hub that does not give what was asked.
    #[error("hf:{repo}: {what}")]
    Hub {
        /// The model on the hub.
        repo: String,
        /// What was wanted, what came, what to do.
        what: String,
    },
    /// A key of config.json (or of GGUF metadata) that is missing or makes no sense.
    #[error("config key {key}: {what}")]
    Config {
        /// The key.
        key: String,
        /// What was wanted, what came, what to do.
        what: String,
    },
}

impl Error {
    /// The system refused; says what to do where the reason is known.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Error {
        Error::Io { path: path.into(), source }
    }

    /// A file that is not what its format says.
    pub fn format(path: impl Into<PathBuf>, what: impl Into<String>) -> Error {
        Error::Format { path: path.into(), what: what.into() }
    }

    /// A tensor that is not what was wanted.
    pub fn tensor(name: impl Into<String>, what: impl Into<String>) -> Error {
        Error::Tensor { name: name.into(), what: what.into() }
    }
}

/// What to do about a refusal of the system, where that is known.
pub fn advice(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free some space or choose another place",
        ErrorKind::PermissionDenied => {
            "; choose a place that you may read and write, or change its permissions"
        }
        ErrorKind::ReadOnlyFilesystem => "; choose a place that can be written to",
        ErrorKind::FileTooLarge => {
            "; raise the limit on file sizes (ulimit -f), or choose a file system that takes larger ones"
        }
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "; a file stands where a folder is wanted: choose another place"
        }
        ErrorKind::IsADirectory => "; wanted a file",
        ErrorKind::NotFound => "; check the name",
        _ => "",
    }
}
