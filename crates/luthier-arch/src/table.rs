//! The architectures, one line each, and what one can ask of a config.

use luthier_checkpoint::layout::Layout;
use luthier_checkpoint::{Checkpoint, TensorInfo};
use serde_json::{Map, Value};

use crate::blocks::decoder_only;
use crate::blocks::encoder_decoder::EncoderDecoderShape;
use crate::blocks::encoder_only::EncoderOnlyShape;
use crate::blocks::stack::{Site, StackShape};
use crate::config::Keys;
use crate::gguf::GgufDialect;
use crate::model::Model;
use crate::weights::WeightSet;
use crate::{Error, Result};

/// A config.json.
pub type Config = Map<String, Value>;

/// Sorted by model_type.
#[rustfmt::skip]
pub const ARCHITECTURES: &[Architecture] = &[
    crate::bert::ARCHITECTURE,
    crate::gemma2::ARCHITECTURE,
    crate::llama::ARCHITECTURE,
    crate::encoder_decoder::ARCHITECTURE,
    crate::mistral::ARCHITECTURE,
    crate::mixtral::ARCHITECTURE,
    crate::mt5::ARCHITECTURE,
    crate::qwen2::ARCHITECTURE,
    crate::qwen2_moe::ARCHITECTURE,
    crate::qwen3::ARCHITECTURE,
    crate::qwen3_moe::ARCHITECTURE,
    crate::t5::ARCHITECTURE,
    crate::t5gemma::ARCHITECTURE,
];

/// What one architecture file gives.
pub struct Architecture {
    /// As config.json calls it.
    pub model_type: &'static str,
    /// Reads a config into sizes and rules.
    pub shape: fn(&Keys) -> Result<ModelShape>,
    /// Reads a config into one stack that stands at that site of an encoder-decoder.
    pub stack: Option<fn(&Keys, &Site) -> Result<StackShape>>,
    /// The config of the encoder-decoder that two models (encoder, decoder) of this architecture make together, where
    /// there is one that other programs know.
    pub encoder_decoder: Option<fn(&Config, &Config) -> Result<Config>>,
    /// How llama.cpp sees it, where it does.
    pub gguf: Option<GgufDialect>,
}

/// Sizes and rules of a whole model.
pub enum ModelShape {
    /// One causal stack.
    DecoderOnly {
        /// The stack.
        stack: Box<StackShape>,
        /// Whether the head is the embedding.
        tied_head: bool,
    },
    /// Two stacks.
    EncoderDecoder(Box<EncoderDecoderShape>),
    /// One stack that sees its whole input, with the heads that its file carries.
    EncoderOnly(Box<EncoderOnlyShape>),
}

impl ModelShape {
    /// One causal stack that `stack` reads; `default_tied` says whether the head is the embedding where the config does not.
    pub fn decoder_only(
        keys: &Keys,
        stack: fn(&Keys, &Site) -> Result<StackShape>,
        default_tied: bool,
    ) -> Result<ModelShape> {
        let tied_head = keys.flag_or("tie_word_embeddings", default_tied)?;
        Ok(ModelShape::DecoderOnly { stack: Box::new(stack(keys, &Site::decoder_only())?), tied_head })
    }

    /// All weights.
    pub fn layout(&self) -> Layout {
        match self {
            ModelShape::DecoderOnly { stack, tied_head } => decoder_only::layout(stack, *tied_head),
            ModelShape::EncoderDecoder(shape) => shape.layout(),
            ModelShape::EncoderOnly(shape) => shape.layout(),
        }
    }

    /// The model that runs on `weights`, which are those of the layout.
    pub fn build(&self, config: &Map<String, Value>, weights: WeightSet) -> Result<Box<dyn Model>> {
        match self {
            ModelShape::DecoderOnly { stack, tied_head } => {
                decoder_only::build(config, stack, *tied_head, weights)
            }
            ModelShape::EncoderDecoder(shape) => shape.build(config, weights),
            ModelShape::EncoderOnly(shape) => shape.build(config, weights),
        }
    }

    /// The same in the form that these tensors have, for architectures whose files differ in what they carry.
    pub fn fitted(self, infos: &[TensorInfo]) -> ModelShape {
        match self {
            ModelShape::EncoderOnly(shape) => ModelShape::EncoderOnly(Box::new(shape.fitted(infos))),
            other => other,
        }
    }
}

/// The architecture that `model_type` of this config names.
pub fn architecture(keys: &Keys) -> Result<&'static Architecture> {
    let model_type = keys.optional_text("model_type")?;
    let model_type = model_type.ok_or_else(|| {
        Error::config(keys.name("model_type"), format!("missing; expected one of {}", known()))
    })?;
    let found = ARCHITECTURES.iter().find(|architecture| architecture.model_type == model_type);
    found.ok_or_else(|| Error::UnknownArchitecture { model_type: model_type.to_string(), known: known() })
}

fn known() -> String {
    let names: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.model_type).collect();
    names.join(", ")
}

/// Sizes and rules of the model that this config describes; an error names the key at fault.
pub fn shape(config: &Map<String, Value>) -> Result<ModelShape> {
    read(&Keys::new(config)?)
}

/// The same of a config that is being read.
pub(crate) fn read(keys: &Keys) -> Result<ModelShape> {
    let shape = (architecture(keys)?.shape)(keys)?;
    keys.refuse_unread_layers()?;
    Ok(shape)
}

/// Whether this config is that of one stack that sees its whole input.
pub(crate) fn is_encoder_only(config: &Map<String, Value>) -> Result<bool> {
    Ok(matches!(shape(config)?, ModelShape::EncoderOnly(_)))
}

/// All weights of a model of this config, with the names and heads that `infos` have where its architecture leaves them
/// open.
pub fn layout_with(config: &Map<String, Value>, infos: &[TensorInfo]) -> Result<Layout> {
    Ok(shape(config)?.fitted(infos).layout())
}

/// All weights that a checkpoint's config and the form of its tensors ask for; [`crate::check_headers`] also compares.
pub fn layout_of(checkpoint: &Checkpoint) -> Result<Layout> {
    layout_with(&checkpoint.config, checkpoint.tensors.infos())
}

/// All weights of a model of this config, in the form that its `architectures` has.
pub fn layout(config: &Map<String, Value>) -> Result<Layout> {
    Ok(shape(config)?.layout())
}

/// Keys of a config that say nothing to its architecture, nested ones with their path. They are kept all the same.
pub fn unknown_keys(config: &Map<String, Value>) -> Result<Vec<String>> {
    let keys = Keys::new(config)?;
    read(&keys)?;
    Ok(keys.unknown())
}

/// The config of the encoder-decoder made of an encoder and a decoder of these configs: the one that other programs
/// know where there is one (Gemma 2 with Gemma 2: T5Gemma), else `luthier_encoder_decoder`.
pub fn encoder_decoder_config(
    encoder: &Map<String, Value>,
    decoder: &Map<String, Value>,
) -> Result<Map<String, Value>> {
    let architecture_of = |config: &Map<String, Value>| architecture(&Keys::new(config)?);
    let (of_encoder, of_decoder) = (architecture_of(encoder)?, architecture_of(decoder)?);
    for (architecture, config) in [(of_encoder, encoder), (of_decoder, decoder)] {
        if architecture.stack.is_none() {
            let what = match shape(config) {
                Ok(ModelShape::EncoderOnly(_)) => "is an encoder, which does not predict next tokens",
                _ => "is an encoder-decoder already",
            };
            let what = format!("{} {what}", architecture.model_type);
            return Err(Error::config("model_type", what));
        }
    }
    let config = match of_decoder.encoder_decoder {
        Some(known) if of_encoder.model_type == of_decoder.model_type => known(encoder, decoder)?,
        _ => crate::encoder_decoder::config(encoder, decoder),
    };
    shape(&config)?;
    Ok(config)
}
