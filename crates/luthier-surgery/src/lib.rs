//! Surgery on checkpoints, one verb a file. It works on layouts and roles and names no architecture.

pub mod adapt;
pub mod adapter_info;
mod config;
pub mod convert;
pub mod diff;
pub mod doctor;
mod error;
pub mod extract;
mod fit;
mod function_check;
pub mod fuse;
mod fused;
pub mod grow;
pub mod info;
mod input;
pub mod lora_gguf;
pub mod merge;
pub mod model_card;
pub mod name;
mod plan;
pub mod prune;
pub mod quantize;
mod sentence_width;
pub mod trim_vocab;
pub mod upcycle;
pub mod version;
mod view;
mod writing;

pub use error::{Error, Result};
pub use function_check::Difference;
pub use fused::fused;
pub use input::Input;
pub use plan::{Plan, PlannedTensor};
pub use prune::{inherit, sub_model};
