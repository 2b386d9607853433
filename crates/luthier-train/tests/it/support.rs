//! Tiny models, a tokenizer of single characters, texts, and a way to run a recipe on them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use luthier_arch::Model;
use luthier_checkpoint::SideFile;
use luthier_checkpoint::lineage::Parent;
use luthier_ops::Device;
use luthier_text::Tokenizer;
use luthier_train::progress::{Progress, Silent, StepDone};
use luthier_train::recipe::ModelSource;
use luthier_train::{Opened, Outcome, Purpose, Recipe, Result, TrainEnv, read_text_file};
use serde_json::{Map, Value, json};

/// Ids: pad 0, bos 1, eos 2, a..z 3..=28, space 29, full stop 30, newline 31.
pub(crate) const VOCAB_SIZE: usize = 40;

pub(crate) fn tokenizer() -> Tokenizer {
    let characters = ('a'..='z').chain([' ', '.', '\n']).map(String::from);
    let names = ["<pad>", "<bos>", "<eos>"].map(String::from).into_iter().chain(characters);
    let vocab: Map<String, Value> = names.enumerate().map(|(id, name)| (name, json!(id))).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null,
        "added_tokens": [special(0, "<pad>"), special(1, "<bos>"), special(2, "<eos>")],
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    let config = json!({"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"});
    let files = BTreeMap::from([
        ("tokenizer.json".to_string(), serde_json::to_vec(&json).unwrap()),
        ("tokenizer_config.json".to_string(), serde_json::to_vec(&config).unwrap()),
    ]);
    Tokenizer::from_files(&files).unwrap()
}

/// A decoder-only model with a tied head.
pub(crate) fn llama_config() -> Map<String, Value> {
    object(json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB_SIZE, "hidden_size": 24,
        "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1,
        "head_dim": 8, "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "initializer_range": 0.1, "tie_word_embeddings": true, "rope_theta": 10000.0, "bos_token_id": 1,
        "eos_token_id": 2, "attention_bias": false, "mlp_bias": false,
    }))
}

/// Two of them joined.
pub(crate) fn encoder_decoder_config() -> Map<String, Value> {
    object(json!({
        "model_type": "luthier_encoder_decoder", "is_encoder_decoder": true, "decoder_start_token_id": 1,
        "tie_word_embeddings": true, "tie_encoder_embeddings": true, "vocab_size": VOCAB_SIZE,
        "encoder": llama_config(), "decoder": llama_config(),
    }))
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

pub(crate) fn model(config: &Map<String, Value>, seed: u64, trainable: bool) -> Box<dyn Model> {
    luthier_arch::init(config, seed, trainable, &Device::Cpu).unwrap()
}

/// Text that can be learnt: sentences of a few words in a fixed pseudo-random order.
pub(crate) fn text(n_sentences: usize, start: u64) -> String {
    let words = ["the", "old", "violin", "sang", "in", "a", "quiet", "room", "while", "rain", "fell"];
    let mut state = start;
    let mut text = String::new();
    for sentence in 0..n_sentences {
        for _ in 0..5 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push_str(words[(state >> 33) as usize % words.len()]);
            text.push(' ');
        }
        text.push_str(if sentence % 4 == 3 { ".\n\n" } else { "." });
    }
    text
}

/// A folder of its own with two texts.
pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.txt"), text(60, 1)).unwrap();
        std::fs::write(folder.path().join("b.txt"), text(7, 2)).unwrap();
        std::fs::write(folder.path().join("c.txt"), text(9, 3)).unwrap();
        Bench { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A recipe over the texts; `changes` are laid over it, null removing a key.
    pub(crate) fn recipe(&self, out: &str, changes: Value) -> Recipe {
        let mut recipe = object(json!({
            "model": "student", "out": self.path(out),
            "data": {"train": [self.path("a.txt"), self.path("b.txt")], "validation": [self.path("c.txt")]},
            "objective": "next-token", "sequence_length": 24, "batch_size": 4, "steps": 10,
            "optimizer": {"name": "adamw", "lr_peak": 3e-3, "betas": [0.9, 0.95], "weight_decay": 0.1},
            "schedule": {"name": "wsd", "warmup_steps": 2, "decay_steps": 4}, "gradient_clip": 1.0,
            "checkpoint_every_steps": 3, "seed": 1,
        }));
        for (key, value) in object(changes) {
            match value {
                Value::Null => drop(recipe.remove(&key)),
                value => drop(recipe.insert(key, value)),
            }
        }
        serde_json::from_value(Value::Object(recipe)).unwrap()
    }
}

/// Runs a recipe whose `model` is made of `config`, its teacher a decoder-only model of another seed.
pub(crate) fn run(recipe: &Recipe, config: &Map<String, Value>) -> Result<Outcome> {
    run_with(recipe, config, &mut Silent, false)
}

pub(crate) fn run_with(
    recipe: &Recipe,
    config: &Map<String, Value>,
    progress: &mut dyn Progress,
    force: bool,
) -> Result<Outcome> {
    let recipe_seed = recipe.seed;
    let mut open = |source: &ModelSource, purpose| {
        let model = match purpose {
            Purpose::Train { seed } => model(config, seed, true),
            Purpose::Adapt => model(config, recipe_seed, false),
            Purpose::Teach => model(&llama_config(), 77, false),
        };
        let tokenizer = tokenizer();
        let side_files =
            tokenizer.files().into_iter().map(|(name, bytes)| SideFile { name, bytes }).collect();
        let parents = vec![Parent::of_bytes(&format!("{source:?}"), &[])];
        Ok(Opened { model, tokenizer: Some(tokenizer), side_files, parents, tensors: None })
    };
    let env = TrainEnv {
        open: &mut open,
        read_text: &read_text_file,
        progress,
        inputs: serde_json::Value::Null,
        threads: 2,
        force,
    };
    luthier_train::run(recipe, env)
}

/// Panics after a step, as a killed process stops anywhere between two writes.
pub(crate) struct StopAfter(pub(crate) u64);

impl Progress for StopAfter {
    fn step_done(&mut self, step: &StepDone) {
        assert_ne!(step.step, self.0, "stopped on purpose");
    }
}

/// Every file below a folder by its relative path.
pub(crate) fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let bytes = std::fs::read(&path).unwrap();
                    all.insert(path.strip_prefix(folder).unwrap().to_path_buf(), bytes);
                }
            }
        }
    }
    all
}
