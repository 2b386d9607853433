//! `luthier trim-vocab`: a model with the tokens that its texts need.

use std::path::PathBuf;

use luthier_surgery::trim_vocab::{self, Also, Card, Wish};
use serde::Deserialize;

use super::Act;
use crate::bounded::{AtLeast, Share};
use crate::places;
use crate::session::{Report, Session};

/// Keeps the tokens that some texts use and cuts all others out of the tokenizer, the embeddings and the heads. Added and
/// special tokens, bytes, sentinels and what chat templates write stay. Text whose tokens are all kept is segmented as
/// before, with the same logits; the share of such text is measured, on --held or on the texts that were counted.
///
/// Of --keep, --coverage and --min-count one may be given; without any, every token that the texts use stays. Texts: the
/// `text` of each line of a .jsonl file, or a whole file.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TrimVocab {
    /// The model
    model: String,
    /// The folder or .gguf file to write
    out: PathBuf,
    /// Texts whose tokens are counted, UTF-8
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    corpus: Vec<PathBuf>,
    /// Keep so many rows in all
    #[arg(long, value_name = "N")]
    keep: Option<AtLeast<1>>,
    /// Keep the most frequent tokens that make up this share of the texts
    #[arg(long, value_name = "P")]
    coverage: Option<Share>,
    /// Keep tokens that the texts use N times or more [default: 1]
    #[arg(long, value_name = "N")]
    min_count: Option<AtLeast<1>>,
    /// Keep the N most frequent tokens of a further text too, such as en:english.txt:10000. May be given several times
    #[arg(long, value_name = "LANG:FILE:N")]
    #[serde(default)]
    also: Vec<String>,
    /// Keep more tokens, until the number of rows is a multiple of M [default: 1]
    #[arg(long, value_name = "M")]
    multiple_of: Option<AtLeast<1>>,
    /// Texts to prove on that nothing else changed [default: those that are counted]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    #[serde(default)]
    held: Vec<PathBuf>,
    /// Replace an existing output
    #[arg(long)]
    #[serde(default)]
    force: bool,
    /// Say what would be done, from texts, tokenizer and headers, and do nothing
    #[arg(long)]
    #[serde(default)]
    plan: bool,
}

impl Act for TrimVocab {
    const NAME: &'static str = "trim-vocab";
    const ABOUT: &'static str = "Cut a vocabulary to the tokens that some texts need";

    fn check(&self) -> Result<(), String> {
        let given = [self.keep.is_some(), self.coverage.is_some(), self.min_count.is_some()];
        if given.iter().filter(|given| **given).count() > 1 {
            return Err("wanted one of keep, coverage and min-count".to_string());
        }
        if self.corpus.is_empty() {
            return Err("corpus: wanted one file or more".to_string());
        }
        self.also().map(drop)
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let also = self.also().map_err(anyhow::Error::msg)?;
        let wish = match (self.keep, self.coverage) {
            (Some(AtLeast(n)), _) => Wish::Keep(n),
            (None, Some(Share(share))) => Wish::Coverage(share),
            (None, None) => Wish::MinCount(self.min_count.map_or(1, |least| least.0 as u64)),
        };
        let input = places::input(&self.model)?;
        places::check_out(&self.out, self.force, &[&input])?;
        let options = trim_vocab::Options {
            corpus: self.corpus,
            wish,
            also,
            multiple_of: self.multiple_of.map_or(1, |multiple| multiple.0),
            held: self.held,
            force: self.force,
        };
        if self.plan {
            return super::plan_report(&trim_vocab::plan(&input, &self.out, &options)?);
        }
        let result = trim_vocab::run(&input, &self.out, &options)?;
        for note in &result.notes {
            session.note(note);
        }
        let text = format!("{}: {}", self.out.display(), words(&result));
        let mut json = serde_json::to_value(&result)?;
        json["out"] = serde_json::json!(self.out);
        Ok(Report { json, text })
    }
}

impl TrimVocab {
    fn also(&self) -> Result<Vec<Also>, String> {
        self.also.iter().map(|text| Also::parse(text).map_err(|what| format!("also: {what}"))).collect()
    }
}

/// The report for a person.
fn words(report: &trim_vocab::Report) -> String {
    let Card { vocab_size, parameter_size_full, compression_rate_full, .. } = &report.after;
    let mut text = format!(
        "{vocab_size} of {} rows ({}), {parameter_size_full} of {} parameters ({compression_rate_full:.2}%), of them {} of {} \
         of tokens ({:.2}%)\n",
        report.before.vocab_size,
        report.tokenizer,
        report.before.parameter_size_full,
        report.after.parameter_size_embedding,
        report.before.parameter_size_embedding,
        report.after.compression_rate_embedding,
    );
    let kept: Vec<String> = report.kept.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    text.push_str(&format!("kept: {}\n", kept.join(", ")));
    if report.padding_rows > 0 {
        let (all, kept) = (report.padding_rows, report.kept_padding_rows);
        text.push_str(&format!("padding: {kept} of {all} rows without a token kept\n"));
    }
    for corpus in &report.corpora {
        text.push_str(&format!(
            "{}: {:.3}% of {} tokens covered, {} of {} different ones kept\n",
            corpus.name,
            100.0 * corpus.coverage,
            corpus.tokens,
            corpus.kept_distinct_tokens,
            corpus.distinct_tokens
        ));
    }
    let proof = &report.proof;
    let equal = match proof.bitwise_equal {
        true => "equal bit for bit".to_string(),
        false => format!("equal but for rounding, {:.1e} at most", proof.max_abs_difference),
    };
    let compared = match proof.compared_states {
        0 => format!("{} logits of kept tokens", proof.compared_logits),
        n => format!("{n} values of final states"),
    };
    text.push_str(&format!(
        "proof: {} of {} lines ({:.2}%) segmented as before, {} tokens became {}; {compared} {equal}",
        proof.unchanged_lines,
        proof.lines,
        100.0 * proof.unchanged_line_share,
        proof.tokens_before,
        proof.tokens_after
    ));
    text
}
