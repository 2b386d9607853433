//! A recipe's `model`: a MODEL, or a config and a tokenizer to start from random weights.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where a run starts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ModelSource {
    /// A MODEL: folder, GGUF file, `hf:org/name[@rev]` or `builtin`.
    Place(String),
    /// Random weights.
    Random(RandomModel),
}

/// A model to be made with random weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomModel {
    /// A config.json.
    pub config: PathBuf,
    /// The MODEL (or tokenizer file) that lends its tokenizer.
    pub tokenizer: String,
}

impl<'de> Deserialize<'de> for ModelSource {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = ModelSource;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a MODEL, or {config: config.json, tokenizer: MODEL}")
            }
            fn visit_str<E: serde::de::Error>(self, place: &str) -> std::result::Result<ModelSource, E> {
                Ok(ModelSource::Place(place.to_string()))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                map: A,
            ) -> std::result::Result<ModelSource, A::Error> {
                RandomModel::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    .map(ModelSource::Random)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
