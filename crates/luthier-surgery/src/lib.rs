//! Surgery on checkpoints, one verb a file. It works on layouts and roles and names no architecture.

pub mod adapt;
pub mod adapter_info;
mod config;
pub mod convert;
pub mod diff;
mod error;
pub mod extract;
mod fit;
pub mod fuse;
mod fused;
pub mod info;
mod input;
pub mod lora_gguf;
pub mod merge;
mod plan;
pub mod quantize;
mod view;
mod writing;

pub use error::{Error, Result};
pub use fused::fused;
pub use input::Input;
pub use plan::{Plan, PlannedTensor};
