//! Surgery on checkpoints, one verb a file. It works on layouts and roles and names no architecture.

pub mod adapt;
mod config;
pub mod convert;
pub mod diff;
mod error;
mod fit;
pub mod info;
mod input;
pub mod merge;
mod plan;
pub mod quantize;
pub mod upcycle;
mod view;
mod writing;

pub use error::{Error, Result};
pub use input::Input;
pub use plan::{Plan, PlannedTensor};
