//! What the demonstration says: a table for the terminal and a page with plots.

use std::fmt::Write;
use std::path::Path;

use luthier_measure::measurements::Measurement;
use luthier_measure::report::{LossCurve, Page, Sample, Unit, render_page};

use super::arms::{Arm, Numbers};

/// What `frontier` reads of a demonstration.
pub(super) fn measurements(arms: &[Arm], measured: &[Numbers]) -> Vec<Measurement> {
    let one = |(arm, numbers): (&Arm, &Numbers)| Measurement {
        name: arm.title.to_string(),
        validation_loss_nats: Some(numbers.validation_loss_nats),
        train_tokens: Some(numbers.train_tokens),
        parameters: Some(numbers.parameters as u64),
        file_bytes: Some(numbers.file_bytes),
        prefill_tokens_per_s: Some(numbers.prefill_tokens_per_s),
        decode_tokens_per_s: Some(numbers.decode_tokens_per_s),
        time_to_first_token_ms: Some(numbers.time_to_first_token_ms),
        peak_rss_bytes: Some(numbers.peak_rss_bytes),
        ..Measurement::default()
    };
    arms.iter().zip(measured).map(one).collect()
}

/// The page.
pub(super) fn page(
    arms: &[Arm],
    measured: &[Numbers],
    samples: &[Sample],
    seed: u64,
) -> anyhow::Result<String> {
    let curves = arms.iter().zip(measured);
    let page = Page {
        title: "A decoder-only model becomes an encoder-decoder".to_string(),
        paragraphs: vec![
            "The built-in model was adapted to an encoder-decoder by copying its layers to both sides and starting cross-attention from its self-attention (T5Gemma, arXiv:2504.06225). It was then trained for a moment beside a randomly initialised model of the same shape and beside its decoder-only parent: the same text, tokens and optimizer for each.".to_string(),
            verdict(measured),
        ],
        measurements: measurements(arms, measured),
        curves: curves
            .map(|(arm, numbers)| LossCurve { name: arm.title.to_string(), points: numbers.curve.clone() })
            .collect(),
        samples: samples.to_vec(),
        notes: vec![
            "Loss is the mean over the second halves of windows of 256 tokens, given the first half, on chapters 25 to 31 of Northanger Abbey, which no training set holds, the built-in model's included.".to_string(),
            "Speed and memory were measured by luthier bench, each model in a process of its own: 128 tokens in, 64 out. The curves show validation on the first 8,192 tokens of the same chapters, so that they end a little beside the table.".to_string(),
            format!("Seed {seed}. Made by: luthier demo --seed {seed}"),
        ],
    };
    Ok(render_page(&page)?)
}

/// The comparison in words, as it came out.
fn verdict(measured: &[Numbers]) -> String {
    let [adapted, random, parent] = measured else { return String::new() };
    let against = |other: &Numbers| {
        let gap = other.validation_loss_nats - adapted.validation_loss_nats;
        format!("{:.2} nats per token {}", gap.abs(), if gap >= 0.0 { "below" } else { "above" })
    };
    format!(
        "After {} training tokens the adapted model's validation loss is {:.2}: {} the randomly initialised one, {} the decoder-only parent.",
        Unit::Count.show(adapted.train_tokens as f64),
        adapted.validation_loss_nats,
        against(random),
        against(parent)
    )
}

/// What the terminal shows.
pub(super) fn words(arms: &[Arm], measured: &[Numbers], samples: &[Sample], report: &Path) -> String {
    let mut text = format!(
        "{:<24} {:>10} {:>10} {:>9} {:>12} {:>12} {:>10}\n",
        "", "loss, nats", "parameters", "file", "prompt tok/s", "decode tok/s", "memory"
    );
    for (arm, numbers) in arms.iter().zip(measured) {
        let _ = writeln!(
            text,
            "{:<24} {:>10.3} {:>10} {:>9} {:>12.0} {:>12.0} {:>10}",
            arm.title,
            numbers.validation_loss_nats,
            Unit::Count.show(numbers.parameters as f64),
            Unit::Bytes.show(numbers.file_bytes as f64),
            numbers.prefill_tokens_per_s,
            numbers.decode_tokens_per_s,
            Unit::Bytes.show(numbers.peak_rss_bytes as f64)
        );
    }
    let _ = writeln!(text, "\n{}", verdict(measured));
    if let Some(sample) = samples.first() {
        let _ = writeln!(
            text,
            "\nPrompt:\n\n{}\nThe adapted model goes on:\n\n{}",
            sample.prompt,
            sample.continuation.trim()
        );
    }
    let _ = write!(text, "\nReport: {}", report.display());
    text
}
