//! T5, versions 1.0 and 1.1: an encoder-decoder with a bias by distance in place of positions.
//!
//! Paper: arXiv:1910.10683, arXiv:2002.05202. Reference: transformers, `modeling_t5.py`. Version 1.0 has plain ReLU blocks and scales states by
//! d_model^-0.5 before a head that is the embedding; version 1.1 has gated blocks and a head of its own.

use crate::blocks::t5::{self, T5Rules};
use crate::gguf::GgufDialect;
use crate::table::{Architecture, ModelShape};

/// Its line in the table.
pub const ARCHITECTURE: Architecture = Architecture {
    model_type: "t5",
    shape: |keys| {
        let rules = T5Rules { feed_forward: "relu", scales_states: true };
        Ok(ModelShape::EncoderDecoder(Box::new(t5::read(keys, &rules)?)))
    },
    stack: None,
    encoder_decoder: None,
    gguf: Some(GgufDialect {
        architecture: "t5",
        class: "T5ForConditionalGeneration",
        interleaved_heads: false,
        whole_norms: false,
        always_tied: false,
    }),
};
