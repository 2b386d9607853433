//! Which type each tensor of a GGUF file gets: llama-quantize's mixtures.
//!
//! Source: llama-quant.cpp of llama.cpp (`llama_tensor_get_type_impl`, `tensor_type_fallback`,
//! `tensor_allows_quantization`) and `enum llama_ftype`. Falcon's exceptions are left out: no architecture here has them.

use luthier_checkpoint::gguf::GgufValue;
use luthier_checkpoint::{Dtype, TensorInfo};
use luthier_kernels::blocks::BlockType::{self, *};

/// A kind of quantised file: most tensors get one type, sensitive ones more bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Mix {
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q2_K_S,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    TQ1_0,
    TQ2_0,
}

/// Name, number in `general.file_type`, type of most tensors.
const MIXES: [(Mix, &str, u32, BlockType); 19] = [
    (Mix::F16, "F16", 1, F16),
    (Mix::BF16, "BF16", 32, BF16),
    (Mix::Q4_0, "Q4_0", 2, Q4_0),
    (Mix::Q4_1, "Q4_1", 3, Q4_1),
    (Mix::Q5_0, "Q5_0", 8, Q5_0),
    (Mix::Q5_1, "Q5_1", 9, Q5_1),
    (Mix::Q8_0, "Q8_0", 7, Q8_0),
    (Mix::Q2_K, "Q2_K", 10, Q2K),
    (Mix::Q2_K_S, "Q2_K_S", 21, Q2K),
    (Mix::Q3_K_S, "Q3_K_S", 11, Q3K),
    (Mix::Q3_K_M, "Q3_K_M", 12, Q3K),
    (Mix::Q3_K_L, "Q3_K_L", 13, Q3K),
    (Mix::Q4_K_S, "Q4_K_S", 14, Q4K),
    (Mix::Q4_K_M, "Q4_K_M", 15, Q4K),
    (Mix::Q5_K_S, "Q5_K_S", 16, Q5K),
    (Mix::Q5_K_M, "Q5_K_M", 17, Q5K),
    (Mix::Q6_K, "Q6_K", 18, Q6K),
    (Mix::TQ1_0, "TQ1_0", 36, TQ1_0),
    (Mix::TQ2_0, "TQ2_0", 37, TQ2_0),
];

impl Mix {
    /// The mixture of a name in upper or lower case; Q3_K, Q4_K and Q5_K mean their middle ones.
    pub fn from_name(name: &str) -> Option<Mix> {
        let name = name.to_ascii_uppercase();
        let name = match name.as_str() {
            "Q3_K" | "Q4_K" | "Q5_K" => format!("{name}_M"),
            _ => name,
        };
        MIXES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Mix> {
        MIXES.iter().map(|row| row.0)
    }

    /// All names, as `--to` lists them.
    pub fn names() -> Vec<&'static str> {
        MIXES.iter().map(|row| row.1).collect()
    }

    /// As llama.cpp spells it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// `general.file_type`.
    pub(super) fn file_type(self) -> u32 {
        self.row().2
    }

    /// The type of most tensors.
    pub(super) fn main_type(self) -> BlockType {
        self.row().3
    }

    fn row(self) -> &'static (Mix, &'static str, u32, BlockType) {
        MIXES.iter().find(|row| row.0 == self).expect("every mixture has its line")
    }
}

/// What the choice of types depends on besides names and shapes.
pub(super) struct Model {
    layers: usize,
    /// Query heads to a key/value head, in the first layer.
    sharing: usize,
    experts: usize,
    /// Models with 80 layers of the Llama 2 70B kind, whose value projections are small.
    is_70b: bool,
}

impl Model {
    /// From the metadata of a GGUF file.
    pub(super) fn of(metadata: &[(String, GgufValue)]) -> Model {
        let get = |key: &str| metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value);
        let architecture = get("general.architecture").and_then(GgufValue::as_str).unwrap_or_default();
        let number = |key: &str| {
            let value = get(&format!("{architecture}.{key}"))?;
            let first = value.as_numbers().and_then(|numbers| numbers.first().map(|number| *number as u64));
            usize::try_from(value.as_u64().or(first)?).ok()
        };
        let layers = number("block_count").unwrap_or(0);
        let heads = number("attention.head_count").unwrap_or(0);
        let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
        let is_70b =
            layers == 80 && (architecture == "qwen2" || architecture == "llama" && heads != kv_heads);
        let sharing = heads.checked_div(kv_heads).unwrap_or(0);
        Model { layers, sharing, experts: number("expert_count").unwrap_or(0), is_70b }
    }
}

/// The type that each tensor gets, in the order of `infos` (GGUF names; shapes outermost axis first).
pub(super) fn types(mix: Mix, model: &Model, infos: &[TensorInfo], has_imatrix: bool) -> Vec<Dtype> {
    let mut order: Vec<usize> = (0..infos.len()).collect();
    // Layers by number, then names: the counters below go through tensors in this order.
    order.sort_by_key(|&at| (layer_of(&infos[at].name).map_or(-1, |layer| layer as i64), &infos[at].name));
    let is_value = |info: &TensorInfo| part_of(&info.name) == Part::Value;
    let mut state = State {
        mix,
        model,
        has_imatrix,
        is_tied: !infos.iter().any(|info| info.name == "output.weight"),
        n_values: infos.iter().filter(|info| is_value(info)).count(),
        values_seen: 0,
        downs_seen: 0,
    };
    let mut types: Vec<Dtype> = infos.iter().map(|info| info.dtype).collect();
    for at in order {
        if is_quantised(&infos[at]) {
            types[at] = Dtype::Weights(state.choose(&infos[at]));
        }
    }
    types
}

/// Whether a tensor is a matrix of weights that llama-quantize touches.
pub(super) fn is_quantised(info: &TensorInfo) -> bool {
    const KEPT: [&str; 11] = [
        "_norm.weight",
        "ffn_gate_inp.weight",
        "altup",
        "laurel",
        "per_layer_model_proj",
        "ssm_conv1d",
        "shortconv.conv.weight",
        "attn_rel_b.weight",
        ".position_embd",
        ".rel_pos",
        ".patch_embd",
    ];
    const KEPT_WHOLE: [&str; 2] = ["position_embd.weight", "token_types.weight"];
    let axes = info.shape.iter().skip_while(|axis| **axis <= 1).count();
    axes >= 2
        && matches!(info.dtype, Dtype::Weights(_))
        && info.name.ends_with("weight")
        && !KEPT.iter().any(|part| info.name.contains(part))
        && !KEPT_WHOLE.contains(&info.name.as_str())
}

/// The layer of `blk.N.`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// What a matrix does in its model.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Embedding,
    Head,
    Value,
    Query,
    Key,
    AttentionOutput,
    Down,
    Other,
}

pub(super) fn part_of(name: &str) -> Part {
    let has = |part: &str| name.contains(part);
    match name {
        "output.weight" => Part::Head,
        "token_embd.weight" | "per_layer_token_embd.weight" => Part::Embedding,
        _ if has("attn_qkv.weight") || has("attn_kv_b.weight") || has("attn_v.weight") => Part::Value,
        _ if has("attn_k.weight") => Part::Key,
        _ if has("attn_q.weight") => Part::Query,
        _ if has("attn_output.weight") => Part::AttentionOutput,
        _ if has("ffn_up") || has("ffn_gate") => Part::Other,
        _ if has("ffn_down") => Part::Down,
        _ => Part::Other,
    }
}

struct State<'m> {
    mix: Mix,
    model: &'m Model,
    has_imatrix: bool,
    is_tied: bool,
    n_values: usize,
    values_seen: usize,
    downs_seen: usize,
}

impl State<'_> {
    fn choose(&mut self, info: &TensorInfo) -> BlockType {
        let main_type = self.mix.main_type();
        if main_type.block_len() == 1 {
            return main_type;
        }
        let columns = info.shape.last().copied().unwrap_or(0);
        let part = part_of(&info.name);
        let chosen = match part {
            Part::Head => head_type(main_type, columns),
            Part::Embedding if self.is_tied => head_type(main_type, columns),
            Part::Embedding if matches!(main_type, TQ1_0 | TQ2_0) => Q4K,
            Part::Value => self.value_type(),
            Part::Key if self.model.experts == 8 => Q8_0,
            Part::Down => self.down_type(&info.name),
            Part::AttentionOutput => self.attention_output_type(),
            _ => main_type,
        };
        fitting(chosen, columns)
    }

    fn value_type(&mut self) -> BlockType {
        let seen = self.values_seen;
        self.values_seen += 1;
        let shared = self.model.sharing >= 4;
        let mut chosen = match self.mix {
            Mix::Q2_K => {
                if shared {
                    Q4K
                } else {
                    Q3K
                }
            }
            Mix::Q2_K_S if shared => Q4K,
            Mix::Q3_K_M => {
                if seen < 2 {
                    Q5K
                } else {
                    Q4K
                }
            }
            Mix::Q3_K_L => Q5K,
            Mix::Q4_K_M | Mix::Q5_K_M if more_bits(seen, self.n_values) => Q6K,
            Mix::Q4_K_S if seen < 4 => Q5K,
            mix => mix.main_type(),
        };
        if self.model.is_70b && matches!(chosen, Q3K | Q4K) {
            chosen = Q5K;
        }
        if self.model.experts == 8 { Q8_0 } else { chosen }
    }

    fn down_type(&mut self, name: &str) -> BlockType {
        let seen = self.downs_seen;
        self.downs_seen += 1;
        let layer = if self.model.experts > 1 { layer_of(name).unwrap_or(seen) } else { seen };
        let layers = self.model.layers;
        match self.mix {
            Mix::Q2_K => Q3K,
            Mix::Q2_K_S if layer < layers / 8 => Q4K,
            Mix::Q3_K_M => {
                if layer < layers / 16 {
                    Q5K
                } else {
                    Q4K
                }
            }
            Mix::Q3_K_L => Q5K,
            Mix::Q4_K_M | Mix::Q5_K_M if more_bits(layer, layers) => Q6K,
            Mix::Q4_K_S if layer < layers / 8 => Q5K,
            Mix::Q4_0 if self.has_imatrix && layer < layers / 8 => Q4_1,
            Mix::Q5_0 if self.has_imatrix && layer < layers / 8 => Q5_1,
            mix => mix.main_type(),
        }
    }

    fn attention_output_type(&self) -> BlockType {
        match (self.mix, self.model.experts == 8) {
            (Mix::Q2_K | Mix::Q3_K_S | Mix::Q3_K_M | Mix::Q4_K_S | Mix::Q4_K_M, true) => Q5K,
            (Mix::Q2_K, false) => Q3K,
            (Mix::Q3_K_M, false) => Q4K,
            (Mix::Q3_K_L, false) => Q5K,
            (mix, _) => mix.main_type(),
        }
    }
}

/// The head, and the embedding that is one.
fn head_type(main_type: BlockType, columns: usize) -> BlockType {
    if main_type == Q8_0 || !columns.is_multiple_of(main_type.block_len()) { Q8_0 } else { Q6K }
}

/// The first and the last eighth of the layers, and every third between.
fn more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// The type itself, or the one that llama.cpp falls back to where its blocks do not divide a row.
pub(super) fn fitting(wanted: BlockType, columns: usize) -> BlockType {
    if columns.is_multiple_of(wanted.block_len()) {
        return wanted;
    }
    let smaller = match wanted {
        Q2K | Q3K | TQ1_0 | TQ2_0 => Q4_0,
        Q4K => Q5_0,
        Q5K => Q5_1,
        Q6K => Q8_0,
        other => other,
    };
    if columns.is_multiple_of(smaller.block_len()) { smaller } else { F16 }
}

#[cfg(test)]
mod tests;
