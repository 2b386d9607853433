//! `luthier doctor`: what is wrong with a model, and what to do.

use std::fmt::Write;
use std::ops::ControlFlow;

use luthier_generate::{Aids, GenerateOptions, generate_text};
use luthier_surgery::doctor::{self, Examination, Severity};
use serde::{Deserialize, Serialize};

use super::Act;
use crate::session::{Report, Session};
use crate::{builtin, places};

/// Examines a model: shapes against the config, every weight for NaN and infinity, tokenizer, special tokens, chat template,
/// types; runs it on a short text as its config says and as near configs would (a wrong rotary base or head count leaves no
/// other trace); writes a few words with it and says how they look. Exit code 1 where there are errors or warnings.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Doctor {
    /// The model
    model: String,
    /// Look at headers and small files only: read no weights, run nothing
    #[arg(long)]
    #[serde(default)]
    headers: bool,
}

/// A few words that the model wrote, and how they look.
#[derive(Debug, Serialize)]
struct Sample {
    prompt: String,
    text: String,
    /// Tokens that the model wrote.
    tokens: usize,
    /// Different ones among them.
    distinct_tokens: usize,
    /// `stop` where it ended by itself.
    finish_reason: String,
    remarks: Vec<String>,
}

const PROMPT: &str = "The first thing that he saw in the morning was";
const SAMPLE_TOKENS: usize = 24;

impl Act for Doctor {
    const NAME: &'static str = "doctor";
    const ABOUT: &'static str = "Find what is wrong with a model, and what to do";

    fn act(self, _session: &Session) -> anyhow::Result<Report> {
        let options = doctor::Options { reads_weights: !self.headers, runs: !self.headers };
        let examination = if self.model == builtin::NAME {
            doctor::examine(&builtin::checkpoint()?, &options)
        } else {
            doctor::examine_place(&places::local_path(&self.model)?, &options)
        };
        let is_broken = examination.findings.iter().any(|finding| finding.severity == Severity::Error);
        let sample = if self.headers || is_broken { None } else { sample(&self.model)? };
        let mut json = serde_json::to_value(&examination)?;
        json["sample"] = serde_json::to_value(&sample)?;
        json["model"] = self.model.clone().into();
        let text = words(&self.model, &examination, sample.as_ref());
        Report { json, text }.judged(examination.healthy)
    }
}

/// None for a model that has no tokenizer or does not write.
fn sample(model: &str) -> anyhow::Result<Option<Sample>> {
    let loaded = places::load(model)?;
    let Some(tokenizer) = loaded.tokenizer_if_any()? else { return Ok(None) };
    let prompt_ids = tokenizer.encode_prompt(PROMPT)?;
    let options = GenerateOptions {
        max_new_tokens: SAMPLE_TOKENS,
        eos_token_ids: loaded.end_ids(Some(&tokenizer)),
        ..GenerateOptions::default()
    };
    let mut go_on = |_: &str| ControlFlow::Continue(());
    let written = generate_text(
        loaded.model.as_ref(),
        &tokenizer,
        &prompt_ids,
        None,
        &options,
        Aids::default(),
        &mut go_on,
    );
    // An encoder writes nothing.
    let Ok((written, text)) = written else { return Ok(None) };
    let tokens = written.token_ids.len();
    let mut distinct = written.token_ids.clone();
    distinct.sort_unstable();
    distinct.dedup();
    let mut remarks = Vec::new();
    if tokens <= 1 {
        remarks.push(
            "it ended at once: a chat model wants its template around a question, others a longer beginning"
                .to_string(),
        );
    } else if distinct.len() * 4 <= tokens {
        remarks.push(
            "it repeats itself: usual for greedy decoding of small or untrained models; try --temperature 0.7".to_string(),
        );
    }
    Ok(Some(Sample {
        prompt: PROMPT.to_string(),
        text,
        tokens,
        distinct_tokens: distinct.len(),
        finish_reason: written.finish_reason.as_str().to_string(),
        remarks,
    }))
}

fn words(model: &str, examination: &Examination, sample: Option<&Sample>) -> String {
    let mut text = String::new();
    for finding in &examination.findings {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        let _ = write!(text, "{severity}: {}: {}", finding.subject, finding.what);
        let _ = if finding.fix.is_empty() { writeln!(text) } else { writeln!(text, "\n  {}", finding.fix) };
    }
    if let Some(trial) = &examination.trial {
        let _ = writeln!(
            text,
            "a plain English text: {:.2} nats a token over {} tokens (guessing: {:.2})",
            trial.nats_per_token, trial.tokens, trial.guessing_nats_per_token
        );
    }
    if let Some(sample) = sample {
        let _ = writeln!(text, "greedy, after {:?}: {:?}", sample.prompt, sample.text);
        for remark in &sample.remarks {
            let _ = writeln!(text, "  {remark}");
        }
    }
    let count = |wanted| examination.findings.iter().filter(|finding| finding.severity == wanted).count();
    let verdict = match (count(Severity::Error), count(Severity::Warning)) {
        (0, 0) => "healthy".to_string(),
        (errors, warnings) => format!("{errors} errors, {warnings} warnings"),
    };
    let _ = write!(text, "{model}: {verdict}");
    text
}
