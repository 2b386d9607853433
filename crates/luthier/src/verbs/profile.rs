//! `luthier profile`: where the time of generating or training goes.

use std::path::PathBuf;

use luthier_arch::Precision;
use luthier_generate::CacheType;
use luthier_measure::metrics::bench::BenchOptions;
use luthier_measure::metrics::{ProfileRow, profile_generation, profile_rows};
use luthier_measure::report::profile_page;
use serde::Deserialize;
use serde_json::json;

use super::Act;
use crate::bounded::{AtLeast, Typed};
use crate::pages::{check_page_out, write_page};
use crate::session::{Report, Session};
use crate::{peaks, places, training};

/// Rows that a person is shown; all stand in the page and in --json.
const ROWS_SHOWN: usize = 20;

/// Shows where the time goes, operation by operation: share, milliseconds, calls, and what was reached in products and in bytes
/// beside what this machine can do. Reads a prompt and decodes as `bench` does; with --train, takes training steps.
///
/// Time that no operation accounts for stands as (between operations). Each byte of weights, inputs and results counts
/// once, so that GB/s of what stays in caches may exceed those of memory.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Profile {
    /// The model
    model: String,
    /// Tokens of the prompt [default: 512, or half the context where that is shorter]
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "train")]
    prompt_tokens: Option<AtLeast<1>>,
    /// Tokens to decode [default: 32, or a quarter of the context]
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "train")]
    new_tokens: Option<AtLeast<2>>,
    /// What keys and values are rounded to: f32, f16 or q8 [default: f16, or f32 where no weights are stored in less]
    #[arg(long, value_name = "TYPE", conflicts_with = "train")]
    kv_cache: Option<Typed<CacheType>>,
    /// Profile training steps instead
    #[arg(long)]
    #[serde(default)]
    train: bool,
    /// Sequences that are decoded together [default: 1], or those of a training step [default: 4]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    batch: Option<AtLeast<1>>,
    /// Tokens of a sequence [default: 256]
    #[arg(long, value_name = "N", allow_negative_numbers = true, requires = "train")]
    seq: Option<AtLeast<2>>,
    /// Training steps, after two for warming up [default: 3]
    #[arg(long, value_name = "N", allow_negative_numbers = true, requires = "train")]
    steps: Option<AtLeast<1>>,
    /// Draw it as a page: what holds what, time from left to right
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace an existing page
    #[arg(long, requires = "out")]
    #[serde(default)]
    force: bool,
}

impl Act for Profile {
    const NAME: &'static str = "profile";
    const ABOUT: &'static str = "Show where the time of generating or training goes";

    fn check(&self) -> Result<(), String> {
        let decoding = self.prompt_tokens.is_some() || self.new_tokens.is_some() || self.kv_cache.is_some();
        match self.train {
            true if decoding => {
                Err("prompt_tokens, new_tokens and kv_cache do not go with train".to_string())
            }
            false if self.seq.is_some() || self.steps.is_some() => {
                Err("seq and steps belong to train".to_string())
            }
            _ if self.force && self.out.is_none() => Err("force belongs to out".to_string()),
            _ => Ok(()),
        }
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        if let Some(out) = &self.out {
            check_page_out(out, self.force, &[])?;
        }
        let (profile, what) = match self.train {
            true => {
                let (batch, seq) = (self.batch.map_or(4, |n| n.0), self.seq.map_or(256, |n| n.0));
                let steps = self.steps.map_or(3, |n| n.0);
                let what = format!("{steps} training steps on {batch} x {seq} tokens");
                (training::profile(&self.model, batch, seq, steps)?, what)
            }
            false => {
                let loaded = places::load_packed(&self.model, Precision::Fast, false)?;
                let context = loaded.model.context_length().unwrap_or(usize::MAX);
                let options = BenchOptions {
                    prompt_tokens: self.prompt_tokens.map_or(512.min(context / 2), |n| n.0),
                    new_tokens: self.new_tokens.map_or(32.min(context / 4), |n| n.0),
                    batch: self.batch.map_or(1, |n| n.0),
                    runs: 1,
                    kv_cache: self.kv_cache.as_ref().map(|kind| kind.0),
                };
                let BenchOptions { prompt_tokens, new_tokens, batch, .. } = options;
                let what =
                    format!("a prompt of {prompt_tokens} tokens, {new_tokens} decoded, {batch} together");
                (profile_generation(loaded.model.as_ref(), options)?, what)
            }
        };
        let peaks = peaks::measure();
        let rows = profile_rows(&profile);
        let total_ms = profile.nodes[0].time.as_secs_f64() * 1e3;
        let threads = session.thread_count();
        let what = format!("{}: {what}, {threads} threads.", self.model);
        if let Some(out) = &self.out {
            let command = "luthier profile counts time on the thread that calls operations.".to_string();
            let page = profile_page(
                &format!("Where the time goes: {}", self.model),
                &profile,
                &[what.clone(), peaks.describe(), command],
            );
            write_page(out, self.force, &[], &page)?;
        }
        let json = json!({
            "operations": rows, "total_ms": total_ms, "threads": threads, "peaks": peaks, "page": self.out,
        });
        let mut text = format!("{what} {total_ms:.1} ms in all.\n{}\n", table(&rows));
        text += &peaks.describe();
        if let Some(out) = &self.out {
            text += &format!("\n{}", out.display());
        }
        Ok(Report { json, text })
    }
}

fn table(rows: &[ProfileRow]) -> String {
    let name = |row: &ProfileRow| format!("{}: {}", row.part, row.operation);
    let shown = &rows[..rows.len().min(ROWS_SHOWN)];
    let width = shown.iter().map(|row| name(row).chars().count()).max().unwrap_or(0);
    let mut text = format!("{:width$}   share        ms   calls  GFLOP/s    GB/s\n", "");
    let number = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.1}"));
    for row in shown {
        let calls = if row.calls > 0 { row.calls.to_string() } else { "-".to_string() };
        text += &format!(
            "{:width$}  {:>5.1}% {:>9.2} {calls:>7} {:>8} {:>7}\n",
            name(row),
            row.share * 100.0,
            row.ms,
            number(row.gflop_per_s),
            number(row.gb_per_s)
        );
    }
    if rows.len() > shown.len() {
        let rest: f64 = rows[shown.len()..].iter().map(|row| row.share).sum();
        text +=
            &format!("{} more, {:.1}% together; --json has all\n", rows.len() - shown.len(), rest * 100.0);
    }
    text
}
