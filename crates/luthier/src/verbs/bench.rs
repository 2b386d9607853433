//! `luthier bench`: how fast a model is on this machine, and how much memory it takes.

use std::path::PathBuf;
use std::time::Instant;

use luthier_arch::Precision;
use luthier_checkpoint::byte_count::Bytes;
use luthier_generate::CacheType;
use luthier_measure::energy::EnergyMeter;
use luthier_measure::measurements::Measurement;
use luthier_measure::metrics::bench::{BenchOptions, bench};
use luthier_train::recipe::AdapterRecipe;
use serde::Deserialize;
use serde_json::json;

use super::Act;
use crate::bounded::{AtLeast, Typed};
use crate::grid::{Axis, cells};
use crate::places;
use crate::record;
use crate::session::{Report, Session};
use crate::training;

mod grid;

/// Times reading a prompt and decoding, by the loop that `generate` uses; with --train, full training steps.
///
/// The prompt is id[i] = (7919 i + 1) mod vocabulary, decoding is greedy and goes on past end tokens. Training is f32,
/// AdamW, every weight or with --lora-rank an adapter, one fixed batch; the median of the steps after two warm-up steps counts. Memory is the peak
/// resident size of the process, mapped pages included.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bench {
    /// The model
    model: String,
    /// Tokens of the prompt [default: 512, or half the context where that is shorter]
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "train")]
    prompt_tokens: Option<AtLeast<1>>,
    /// Tokens to decode [default: 128, or a quarter of the context]
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "train")]
    new_tokens: Option<AtLeast<2>>,
    /// Timed runs, of which the median counts [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "train")]
    runs: Option<AtLeast<1>>,
    /// What keys and values are rounded to: f32, f16, or q8, whole numbers with a scale for each 64 of them [default: f16, or f32 where no weights are stored in less]
    #[arg(long, value_name = "TYPE", conflicts_with = "train")]
    kv_cache: Option<Typed<CacheType>>,
    /// Time training steps instead
    #[arg(long)]
    #[serde(default)]
    train: bool,
    /// Sequences that are decoded together [default: 1], or those of a training step [default: 4]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    batch: Option<AtLeast<1>>,
    /// Tokens of a sequence [default: 256]
    #[arg(long, value_name = "N", allow_negative_numbers = true, requires = "train")]
    seq: Option<AtLeast<2>>,
    /// Training steps, with --train or in a grid, the two for warming up included [default: 8]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    steps: Option<AtLeast<3>>,
    /// Train a LoRA adapter of this rank beside all projections, alpha twice as much; the model stays as its file has it
    #[arg(long, value_name = "R", allow_negative_numbers = true, requires = "train")]
    lora_rank: Option<AtLeast<1>>,
    /// Keep the whole process within that much memory, by computing as few layers as needed again in the backward pass
    #[arg(long, value_name = "BYTES", requires = "train")]
    memory: Option<Bytes>,
    /// Measure across axes, each cell in a process of its own: batch=1,8 length=128,512 threads=1,2 type=asis,Q8_0,F16 kv=f16,q8 work=generate,train. Types are made with `quantize` first; --new-tokens, --runs and --steps count for all cells
    #[arg(long, value_name = "AXIS=VALUES", num_args = 0.., conflicts_with_all = ["prompt_tokens", "batch", "seq", "train", "record", "kv_cache", "lora_rank", "memory"])]
    grid: Option<Vec<Typed<Axis>>>,
    /// The page of a grid to write
    #[arg(long, value_name = "FILE", requires = "grid")]
    out: Option<PathBuf>,
    /// Replace an existing page
    #[arg(long, requires = "out")]
    #[serde(default)]
    force: bool,
    /// Keep the numbers in DIR/measurements.json, from which `frontier` draws
    #[arg(long, value_name = "DIR", conflicts_with = "train")]
    record: Option<PathBuf>,
}

impl Act for Bench {
    const NAME: &'static str = "bench";
    const ABOUT: &'static str = "Measure speed and memory: prompt, decoding, or training steps";

    fn check(&self) -> Result<(), String> {
        let decoding = self.prompt_tokens.is_some()
            || self.new_tokens.is_some()
            || self.runs.is_some()
            || self.record.is_some()
            || self.kv_cache.is_some();
        let training =
            self.seq.is_some() || self.steps.is_some() || self.lora_rank.is_some() || self.memory.is_some();
        if let Some(axes) = &self.grid {
            let apart = self.prompt_tokens.is_some()
                || self.batch.is_some()
                || self.seq.is_some()
                || self.record.is_some()
                || self.kv_cache.is_some()
                || self.lora_rank.is_some()
                || self.memory.is_some();
            if self.train || apart {
                return Err("prompt_tokens, batch, seq, train, record, kv_cache, lora_rank and memory do not go with grid, whose axes say them".to_string());
            }
            let axes: Vec<Axis> = axes.iter().map(|axis| axis.0.clone()).collect();
            return cells(&axes, 1).map(drop);
        }
        if self.out.is_some() || self.force {
            return Err("out and force belong to grid".to_string());
        }
        match self.train {
            true if decoding => {
                Err("prompt_tokens, new_tokens, runs, record and kv_cache do not go with train".to_string())
            }
            false if training => Err("seq, steps, lora_rank and memory belong to train".to_string()),
            _ => Ok(()),
        }
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        match (&self.grid, self.train) {
            (Some(_), _) => self.grid(session),
            (None, true) => self.training(session),
            (None, false) => self.decoding(session),
        }
    }
}

impl Bench {
    fn decoding(&self, session: &Session) -> anyhow::Result<Report> {
        let started = Instant::now();
        let loaded = places::load_packed(&self.model, Precision::Fast, false)?;
        let load_ms = started.elapsed().as_secs_f64() * 1e3;
        let context = loaded.model.context_length().unwrap_or(usize::MAX);
        let options = BenchOptions {
            prompt_tokens: self.prompt_tokens.map_or(512.min(context / 2), |n| n.0),
            new_tokens: self.new_tokens.map_or(128.min(context / 4), |n| n.0),
            batch: self.batch.map_or(1, |n| n.0),
            runs: self.runs.map_or(1, |n| n.0),
            kv_cache: self.kv_cache.as_ref().map(|kind| kind.0),
        };
        let result = bench(loaded.model.as_ref(), options)?;
        let mut json = serde_json::to_value(&result)?;
        json["load_ms"] = json!(load_ms);
        json["threads"] = json!(session.thread_count());
        if let Some(dir) = &self.record {
            let numbers = Measurement {
                prefill_tokens_per_s: Some(result.prefill_tokens_per_s),
                decode_tokens_per_s: Some(result.decode_tokens_per_s),
                time_to_first_token_ms: Some(result.time_to_first_token_ms),
                load_ms: Some(load_ms),
                peak_rss_bytes: Some(result.peak_rss_bytes),
                threads: Some(session.thread_count()),
                ..Measurement::default()
            };
            record::record(dir, &self.model, &loaded.checkpoint, numbers)?;
        }
        let text = format!(
            "prompt {:.1} tokens/s, decoding {:.1} tokens/s, first token after {:.1} ms, load {load_ms:.1} ms, peak memory {:.1} MB, {} threads",
            result.prefill_tokens_per_s,
            result.decode_tokens_per_s,
            result.time_to_first_token_ms,
            result.peak_rss_bytes as f64 / 1e6,
            session.thread_count()
        );
        Ok(Report { json, text })
    }

    fn training(&self, session: &Session) -> anyhow::Result<Report> {
        let batch = self.batch.map_or(4, |n| n.0);
        let seq = self.seq.map_or(256, |n| n.0);
        let steps = self.steps.map_or(8, |n| n.0);
        let adapter = self.lora_rank.map(|rank| AdapterRecipe {
            rank: rank.0 as u64,
            alpha: 2.0 * rank.0 as f64,
            targets: Vec::new(),
            initial: None,
        });
        let energy = EnergyMeter::start();
        let result = training::bench(&self.model, adapter.as_ref(), self.memory, batch, seq, steps)?;
        let joules = energy.and_then(|energy| energy.joules());
        if let Some(plan) = &result.memory {
            session.note(&plan.text());
        }
        let peak_rss_bytes = luthier_measure::memory::peak_rss_bytes()?;
        let text = format!(
            "training {:.1} tokens/s, {:.1} ms a step, peak memory {:.1} MB, loss {:.4} to {:.4}, {} threads",
            result.train_tokens_per_s,
            result.step_ms,
            peak_rss_bytes as f64 / 1e6,
            result.losses.first().copied().unwrap_or(f64::NAN),
            result.losses.last().copied().unwrap_or(f64::NAN),
            session.thread_count()
        );
        let mut json = serde_json::to_value(&result)?;
        json["joules"] = json!(joules);
        json["peak_rss_bytes"] = json!(peak_rss_bytes);
        json["threads"] = json!(session.thread_count());
        Ok(Report { json, text })
    }
}
