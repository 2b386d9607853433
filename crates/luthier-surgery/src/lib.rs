//! Surgery on checkpoints, one verb a file. It works on layouts and roles and names no architecture.

pub mod adapt;
mod config;
pub mod convert;
pub mod diff;
mod error;
mod fit;
mod function_check;
pub mod grow;
pub mod info;
mod input;
pub mod merge;
mod plan;
pub mod prune;
pub mod quantize;
mod view;
mod writing;

pub use error::{Error, Result};
pub use function_check::Difference;
pub use input::Input;
pub use plan::{Plan, PlannedTensor};
pub use prune::{inherit, sub_model};
