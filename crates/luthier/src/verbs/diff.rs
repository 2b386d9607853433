//! `luthier diff`: what distinguishes two models.

use std::fmt::Write;

use luthier_surgery::diff::{self, Difference};
use serde::Deserialize;

use super::Act;
use crate::places;
use crate::session::{Report, Session};

/// Compares two models tensor by tensor, key by key, file by file; folders and GGUF files alike.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Diff {
    /// One model
    a: String,
    /// The other
    b: String,
}

impl Act for Diff {
    const NAME: &'static str = "diff";
    const ABOUT: &'static str = "Compare two models tensor by tensor and key by key";

    fn act(self, _session: &Session) -> anyhow::Result<Report> {
        let difference = diff::run(&places::open(&self.a)?, &places::open(&self.b)?)?;
        Ok(Report { json: serde_json::to_value(&difference)?, text: words(&difference, &self.a, &self.b) })
    }
}

fn words(difference: &Difference, a: &str, b: &str) -> String {
    let mut repeated = String::new();
    for (names, place) in [(&difference.repeated_only_in_a, a), (&difference.repeated_only_in_b, b)] {
        for name in names {
            let _ =
                writeln!(repeated, "only the files of {place} carry the tied weight {name} a second time");
        }
    }
    if difference.identical {
        return repeated + "identical";
    }
    let mut text = format!(
        "{} tensors of equal values, {} of different values, {} stored in different types\n",
        difference.equal.len(),
        difference.changed.len(),
        difference.dtypes.len()
    );
    text.push_str(&repeated);
    for (names, place) in [(&difference.only_in_a, a), (&difference.only_in_b, b)] {
        for name in names {
            let _ = writeln!(text, "only in {place}: {name}");
        }
    }
    for one in &difference.shapes {
        let _ = writeln!(text, "{}: shape {:?} and {:?}", one.name, one.a, one.b);
    }
    for one in &difference.dtypes {
        let _ = writeln!(text, "{}: stored as {} and as {}", one.name, one.a, one.b);
    }
    let number = |value: Option<f64>| value.map_or("not finite".to_string(), |value| format!("{value:.3e}"));
    for one in &difference.changed {
        let _ = writeln!(
            text,
            "{}: {} values differ, at most by {}, relative {}",
            one.name,
            one.values,
            number(one.max_abs),
            number(one.relative_l2)
        );
    }
    let said =
        |value: &Option<serde_json::Value>| value.as_ref().map_or("absent".to_string(), ToString::to_string);
    for one in &difference.config {
        let _ = writeln!(text, "config {}: {} and {}", one.key, said(&one.a), said(&one.b));
    }
    for one in &difference.side_files {
        let _ = match (one.a_bytes, one.b_bytes) {
            (Some(_), None) => writeln!(text, "only in {a}: file {}", one.name),
            (None, Some(_)) => writeln!(text, "only in {b}: file {}", one.name),
            _ => writeln!(text, "file {} differs", one.name),
        };
    }
    text
}
