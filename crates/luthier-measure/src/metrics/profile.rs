//! Where the time of generating goes, operation by operation, by the loop that `generate` uses.

use std::ops::ControlFlow;
use std::time::Duration;

use luthier_arch::model::Model;
use luthier_generate::{GenerateOptions, generate, generate_together};
use luthier_ops::profile::{Profile, Work, record};

use super::bench::{BenchOptions, bench_prompts, check};
use crate::Result;

/// Profiles reading a prompt and decoding, after a run that does not count. `options.runs` are profiled together.
///
/// # Errors
/// Those of [`super::bench()`].
pub fn profile_generation(model: &dyn Model, options: BenchOptions) -> Result<Profile> {
    check(model, options)?;
    let prompts = bench_prompts(model.vocab_size(), options);
    let run = |new_tokens: usize| -> Result<()> {
        let decoding = GenerateOptions {
            max_new_tokens: new_tokens,
            ignore_eos: true,
            kv_cache: options.kv_cache,
            ..GenerateOptions::default()
        };
        match prompts.as_slice() {
            [prompt] => {
                generate(model, prompt, None, &decoding, &mut |_| ControlFlow::Continue(()))?;
            }
            many => {
                generate_together(model, many, &decoding)?;
            }
        }
        Ok(())
    };
    run(2)?;
    let (outcome, profile) = record(|| (0..options.runs).try_for_each(|_| run(options.new_tokens)));
    outcome.map(|()| profile)
}

/// One kind of operation in one part of a step.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ProfileRow {
    /// `prompt`, `decoding`, `forward`, ...
    pub part: String,
    /// The operation, with the matrix that it multiplies where it has one; [`BETWEEN`] for what no operation accounts for.
    pub operation: String,
    /// Of all time.
    pub share: f64,
    /// Together.
    pub ms: f64,
    /// How often.
    pub calls: u64,
    /// Multiplications and additions a second, where products are what it does.
    pub gflop_per_s: Option<f64>,
    /// Bytes of weights, inputs and results a second, each counted once.
    pub gb_per_s: Option<f64>,
}

/// What stands for time that no operation accounts for: making tensors, copying them into order, what the loop itself does.
pub const BETWEEN: &str = "(between operations)";

/// The operations of a profile, all layers of a kind together, the longest first.
pub fn profile_rows(profile: &Profile) -> Vec<ProfileRow> {
    let own = profile.own_times();
    let all_ms = ms(profile.nodes[0].time).max(f64::MIN_POSITIVE);
    let mut rows: Vec<(String, String, Duration, u64, Work)> = Vec::new();
    for (number, node) in profile.nodes.iter().enumerate() {
        let mut step = number;
        while profile.nodes[step].depth > 1 {
            step = profile.nodes[step].parent.unwrap_or(0);
        }
        let part = if step == 0 { "loop" } else { profile.nodes[step].name.as_str() };
        let operation = if node.is_operation { node.name.as_str() } else { BETWEEN };
        let calls = if node.is_operation { node.calls } else { 0 };
        match rows.iter_mut().find(|row| row.0 == part && row.1 == operation) {
            Some(row) => {
                row.2 += own[number];
                row.3 += calls;
                row.4 += node.work;
            }
            None => rows.push((part.to_string(), operation.to_string(), own[number], calls, node.work)),
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.2));
    rows.into_iter()
        .map(|(part, operation, time, calls, work)| {
            let a_second = |amount: f64| {
                (amount > 0.0 && time > Duration::ZERO).then(|| amount / time.as_secs_f64() / 1e9)
            };
            ProfileRow {
                part,
                operation,
                share: ms(time) / all_ms,
                ms: ms(time),
                calls,
                gflop_per_s: a_second(work.flops),
                gb_per_s: a_second(work.bytes),
            }
        })
        .collect()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use luthier_ops::profile::{numbered_part, part};

    use super::*;

    #[test]
    fn rows_account_for_all_time() {
        let ((), profile) = record(|| {
            for layer in 0..3 {
                let _step = part("forward");
                let _layer = numbered_part("layer", layer);
                std::hint::black_box((0..20_000).map(f64::from).sum::<f64>());
            }
        });
        let rows = profile_rows(&profile);
        assert!((rows.iter().map(|row| row.share).sum::<f64>() - 1.0).abs() < 1e-6, "{rows:?}");
        assert!(rows.iter().all(|row| row.operation == BETWEEN) && rows.len() == 2);
    }
}
