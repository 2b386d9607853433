//! Architectures, one a file, and the blocks that they are built of. One `forward` trains, scores and generates.

pub mod bert;
pub mod blocks;
pub mod config;
pub mod encoder_decoder;
pub mod error;
mod finite;
mod fused;
pub mod gemma2;
pub mod gguf;
pub mod init;
pub mod llama;
pub mod load;
mod memory;
pub mod mistral;
pub mod mixtral;
pub mod model;
pub mod mt5;
pub mod observer;
mod packing;
pub mod qwen2;
pub mod qwen2_moe;
pub mod qwen3;
pub mod qwen3_moe;
pub mod random;
pub mod sizes;
pub mod t5;
pub mod t5gemma;
pub mod table;
pub mod upcycle;
pub mod weights;

pub use error::{Error, Result};
pub use gguf::open;
pub use init::{from_weights, init};
pub use load::{LoadOptions, check_headers, check_ties, load, load_packed};
pub use luthier_kernels::packed::Precision;
pub use memory::check_tokens;
pub use model::{Cache, Encoded, Model, TokenBatch};
pub use observer::Observer;
pub use table::{
    ARCHITECTURES, Architecture, encoder_decoder_config, layout, layout_of, layout_with, unknown_keys,
};
pub use upcycle::{Upcycling, upcycled_config};
