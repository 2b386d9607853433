//! A Llama of 978 million random parameters, for what no smaller model shows.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use luthier_checkpoint::safetensors::SafetensorsWriter;
use luthier_checkpoint::{Dtype, TensorInfo, TensorSink};
use serde_json::json;

use crate::python_env::succeed;

const HIDDEN: usize = 2048;
const FFN: usize = 8192;
const KV: usize = 512;
const LAYERS: usize = 15;
const VOCAB: usize = 32_000;
/// So that every checkpoint has several shards.
const SHARD_BYTES: usize = 600_000_000;

/// It as a GGUF file of a type, made where it is missing.
pub(super) fn gguf(program: &Path, kind: &str) -> Result<PathBuf> {
    let folder = crate::root().join("target/bench");
    let (source, file) = (folder.join("surgery-a"), folder.join(format!("billion-{kind}.gguf")));
    if file.exists() {
        return Ok(file);
    }
    make(&source, 1)?;
    let mut command = Command::new(program);
    match kind {
        "F16" => command.arg("convert").arg(&source).arg(&file).args(["--dtype", "f16"]),
        kind => command.arg("quantize").arg(&source).arg(&file).args(["--to", kind]),
    };
    succeed(command.stdout(Stdio::null()))?;
    Ok(file)
}

/// The model in bf16, where it is missing; those of seeds above zero are fine-tunes of that of seed zero.
pub(super) fn make(folder: &Path, seed: u64) -> Result<()> {
    if folder.join("config.json").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let infos = infos();
    let metadata = SafetensorsWriter::pt_metadata();
    let mut writer = SafetensorsWriter::create(folder, &infos, &metadata, Some(SHARD_BYTES))?;
    for (number, info) in infos.iter().enumerate() {
        let mut base = Noise(number as u64 + 1);
        let mut own = Noise(seed * 1000 + number as u64 + 1);
        let share = if seed == 0 { 0.0 } else { 0.1 };
        let value = |_| {
            let value = 0.02 * (base.next() + share * own.next());
            ((value.to_bits() >> 16) as u16).to_le_bytes()
        };
        let len: usize = info.shape.iter().product();
        let bytes: Vec<u8> = (0..len).flat_map(value).collect();
        writer.write(&info.name, &bytes)?;
    }
    writer.finish()?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HIDDEN / 64,
        "num_key_value_heads": KV / 64, "head_dim": 64, "vocab_size": VOCAB, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
    });
    std::fs::write(folder.join("config.json"), format!("{config:#}\n"))?;
    Ok(())
}

fn infos() -> Vec<TensorInfo> {
    let mut infos = Vec::new();
    let mut add = |name: String, shape: Vec<usize>| {
        let dtype = Dtype::BF16;
        infos.push(TensorInfo { name, dtype, shape });
    };
    add("model.embed_tokens.weight".to_string(), vec![VOCAB, HIDDEN]);
    for layer in 0..LAYERS {
        for (part, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KV, HIDDEN]),
            ("self_attn.v_proj", vec![KV, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![FFN, HIDDEN]),
            ("mlp.up_proj", vec![FFN, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FFN]),
        ] {
            add(format!("model.layers.{layer}.{part}.weight"), shape);
        }
    }
    add("model.norm.weight".to_string(), vec![HIDDEN]);
    infos
}

/// Numbers around zero that look normal: sums of four bytes of an xorshift generator.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        let sum: u32 = mixed.to_le_bytes()[4..].iter().map(|byte| u32::from(*byte)).sum();
        (sum as f32 - 510.0) / 147.0
    }
}
