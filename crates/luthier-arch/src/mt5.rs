//! mT5: T5 1.1 over a vocabulary for 101 languages: an encoder-decoder with a bias by distance in place of positions.
//!
//! Paper: arXiv:2010.11934. Reference: transformers, `modeling_mt5.py`. Differs from t5 in: blocks are gated
//! where the config does not say; states are never scaled.

use crate::blocks::t5::{self, T5Rules};
use crate::gguf::GgufDialect;
use crate::table::{Architecture, ModelShape};

/// Its line in the table.
pub const ARCHITECTURE: Architecture = Architecture {
    model_type: "mt5",
    shape: |keys| {
        let rules = T5Rules { feed_forward: "gated-gelu", scales_states: false };
        Ok(ModelShape::EncoderDecoder(Box::new(t5::read(keys, &rules)?)))
    },
    stack: None,
    encoder_decoder: None,
    gguf: Some(GgufDialect {
        architecture: "t5",
        class: "MT5ForConditionalGeneration",
        interleaved_heads: false,
        whole_norms: false,
        always_tied: false,
    }),
};
