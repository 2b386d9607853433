//! `model.safetensors.index.json`: which shard holds which tensor.

use serde::Deserialize;

use super::header::UniqueMap;

/// The name of the index in a folder.
pub(crate) const INDEX_NAME: &str = "model.safetensors.index.json";

/// A checked index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Tensor and the name of its shard, in file order.
    pub weight_map: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: UniqueMap<String>,
}

impl Index {
    /// Reads an index of safetensors files. The error says what is wrong; the caller adds the file's name.
    pub fn parse(json: &[u8]) -> Result<Index, String> {
        Index::parse_of(json, ".safetensors")
    }

    /// Reads an index of files whose names end so.
    pub(crate) fn parse_of(json: &[u8], ending: &str) -> Result<Index, String> {
        let raw: RawIndex = serde_json::from_slice(json).map_err(|problem| problem.to_string())?;
        let weight_map = raw.weight_map.0;
        if weight_map.is_empty() {
            return Err("weight_map names no tensor".to_string());
        }
        for (tensor, shard) in &weight_map {
            let plain = shard.ends_with(ending) && !shard.contains(['/', '\\', '\0']);
            if !plain {
                return Err(format!(
                    "tensor {tensor}: shard {shard:?} is not the name of a {ending} file beside the index"
                ));
            }
        }
        Ok(Index { weight_map })
    }

    /// The shards in the order in which they are first named.
    pub fn shards(&self) -> Vec<&str> {
        let mut seen = std::collections::HashSet::new();
        self.weight_map.iter().map(|(_, shard)| shard.as_str()).filter(|shard| seen.insert(*shard)).collect()
    }
}
