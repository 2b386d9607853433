//! GGUF files as models of this crate: names, metadata keys and the few transforms of weights that llama.cpp's converter
//! applies, in both directions.
//!
//! Source: gguf-py's `constants.py` and the `conversion` package of llama.cpp. Files that we write also carry the whole
//! config.json under [`CONFIG_KEY`], so that nothing is lost on the way back. Encoder-decoders other than T5 have no form
//! that llama.cpp knows; they keep their Hugging Face names, under their model_type as `general.architecture`.

mod agreement;
pub mod beside;
mod encoder_decoder;
mod encoder_only;
mod metadata;
mod names;
mod open;
mod per_layer;
mod rope_factors;
mod transform;
mod write;

pub use names::name_of;
pub use open::{open, open_gguf};
pub use transform::Transform;
pub use write::{GgufForm, GgufOrigin, GgufTensor, ignored_window, plan, plan_with};

/// Metadata key of the config.json, as text.
pub const CONFIG_KEY: &str = "luthier.config";

/// Metadata key of the names that the folder's tensors have, in its order.
pub const NAMES_KEY: &str = "luthier.names";

/// How llama.cpp sees an architecture.
#[derive(Clone, Copy, Debug)]
pub struct GgufDialect {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// The class in config.json's `architectures`.
    pub class: &'static str,
    /// Whether rows of queries and keys are reordered so that the pairs of rotary positions stand side by side.
    pub interleaved_heads: bool,
    /// Whether norm weights are stored as what they multiply with, not as differences from 1.
    pub whole_norms: bool,
    /// Whether the head is always the embedding.
    pub always_tied: bool,
}
