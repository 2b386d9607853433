//! measurements.json: what is known of some models' quality and cost, in a folder beside them.
//!
//! `{"format": "luthier-measurements-1", "measurements": [{"name": "...", "validation_loss_nats": 3.2, ...}]}`; keys as
//! in [`Measurement`], each but `name` may be missing.

use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// The file's name within its folder.
pub const MEASUREMENTS_FILE: &str = "measurements.json";
const NO_FILE: &str =
    "no such file; luthier perplexity and luthier bench write it with --record DIR, luthier demo by itself";
const FORMAT: &str = "luthier-measurements-1";

/// What is known of one model. A missing number was not measured.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// What the reader knows the model by.
    pub name: String,
    /// Mean over the scored tokens of a text that it was not trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss_nats: Option<f64>,
    /// The same text's bits over its bytes: comparable between tokenizers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// `exp` of the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// What the losses were measured over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Tokens that it was trained on here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_tokens: Option<u64>,
    /// Numbers in its weights, tied ones once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    /// Its weights on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Prompt tokens a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_tokens_per_s: Option<f64>,
    /// New tokens a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_tokens_per_s: Option<f64>,
    /// From the prompt to the first new token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_to_first_token_ms: Option<f64>,
    /// From the file to a model that can run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_ms: Option<f64>,
    /// Of the whole process, mapped file pages included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_rss_bytes: Option<u64>,
    /// Threads that speed was measured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    measurements: Vec<Measurement>,
}

impl Measurement {
    /// What `newer` knows, and what only `self` knows.
    pub fn updated(&self, newer: &Measurement) -> Measurement {
        Measurement {
            name: newer.name.clone(),
            validation_loss_nats: newer.validation_loss_nats.or(self.validation_loss_nats),
            bits_per_byte: newer.bits_per_byte.or(self.bits_per_byte),
            perplexity: newer.perplexity.or(self.perplexity),
            text: newer.text.clone().or_else(|| self.text.clone()),
            train_tokens: newer.train_tokens.or(self.train_tokens),
            parameters: newer.parameters.or(self.parameters),
            file_bytes: newer.file_bytes.or(self.file_bytes),
            prefill_tokens_per_s: newer.prefill_tokens_per_s.or(self.prefill_tokens_per_s),
            decode_tokens_per_s: newer.decode_tokens_per_s.or(self.decode_tokens_per_s),
            time_to_first_token_ms: newer.time_to_first_token_ms.or(self.time_to_first_token_ms),
            load_ms: newer.load_ms.or(self.load_ms),
            peak_rss_bytes: newer.peak_rss_bytes.or(self.peak_rss_bytes),
            threads: newer.threads.or(self.threads),
        }
    }

    /// The first number that no measurement can give.
    fn impossible(&self) -> Option<(&'static str, f64)> {
        [
            ("validation_loss_nats", self.validation_loss_nats),
            ("bits_per_byte", self.bits_per_byte),
            ("perplexity", self.perplexity),
            ("prefill_tokens_per_s", self.prefill_tokens_per_s),
            ("decode_tokens_per_s", self.decode_tokens_per_s),
            ("time_to_first_token_ms", self.time_to_first_token_ms),
            ("load_ms", self.load_ms),
        ]
        .into_iter()
        .find_map(|(key, value)| {
            value.filter(|value| !value.is_finite() || *value < 0.0).map(|value| (key, value))
        })
    }
}

/// What the folder `dir` knows, in the file's order.
///
/// # Errors
/// A folder without the file, a file of another format, unknown keys, negative or infinite numbers.
pub fn read_measurements(dir: &Path) -> Result<Vec<Measurement>> {
    let path = dir.join(MEASUREMENTS_FILE);
    let wrong = |reason: String| Error::Measurements { path: path.clone(), reason };
    let bytes = std::fs::read(&path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => wrong(NO_FILE.into()),
        _ => Error::Io { path: path.clone(), source },
    })?;
    let file: File = serde_json::from_slice(&bytes)
        .map_err(|error| wrong(format!("wanted what luthier records there: {error}")))?;
    if file.format != FORMAT {
        return Err(wrong(format!("key format: expected {FORMAT:?}, got {:?}", file.format)));
    }
    check(&file.measurements).map_err(wrong)?;
    Ok(file.measurements)
}

/// Writes `measurements` into `dir`, which exists: a measurement updates the one of the same name, others are kept. The
/// file is replaced at once or not at all.
///
/// # Errors
/// Those of [`read_measurements`] for a file that is there, impossible numbers, a folder that cannot be written.
pub fn record_measurements(dir: &Path, measurements: &[Measurement]) -> Result<()> {
    let path = dir.join(MEASUREMENTS_FILE);
    let mut all = if path.exists() { read_measurements(dir)? } else { Vec::new() };
    for newer in measurements {
        match all.iter_mut().find(|known| known.name == newer.name) {
            Some(known) => *known = known.updated(newer),
            None => all.push(newer.clone()),
        }
    }
    check(&all).map_err(|reason| Error::Measurements { path: path.clone(), reason })?;
    let file = File { format: FORMAT.to_string(), measurements: all };
    let text = serde_json::to_string_pretty(&file)
        .map_err(|error| Error::Measurements { path: path.clone(), reason: error.to_string() })?;
    let beside = dir.join(format!("{MEASUREMENTS_FILE}.{}.part", std::process::id()));
    write_synced(&beside, &text).and_then(|()| std::fs::rename(&beside, &path)).map_err(|source| {
        // What could not be finished is not left behind; the error tells of the first failure.
        let _ = std::fs::remove_file(&beside);
        Error::Io { path, source }
    })
}

fn write_synced(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

fn check(measurements: &[Measurement]) -> std::result::Result<(), String> {
    for measurement in measurements {
        if let Some((key, value)) = measurement.impossible() {
            return Err(format!(
                "measurement {:?}, key {key}: expected a number of 0 or more, got {value}",
                measurement.name
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Measurement {
        Measurement { name: name.into(), ..Measurement::default() }
    }

    #[test]
    fn recording_updates_by_name_and_keeps_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let loss = Measurement { validation_loss_nats: Some(3.25), ..named("a") };
        record_measurements(dir.path(), &[loss, named("b")]).unwrap();
        let speed = Measurement { decode_tokens_per_s: Some(100.5), ..named("a") };
        record_measurements(dir.path(), &[speed]).unwrap();
        let both =
            Measurement { validation_loss_nats: Some(3.25), decode_tokens_per_s: Some(100.5), ..named("a") };
        assert_eq!(read_measurements(dir.path()).unwrap(), [both, named("b")]);
        let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(files.len(), 1, "{files:?}");
    }

    #[test]
    fn broken_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = || read_measurements(dir.path()).unwrap_err().to_string();
        assert!(refusal().contains("measurements.json: no such file"));
        for (text, want) in [
            ("{", "EOF while parsing"),
            (
                r#"{"format": "x", "measurements": []}"#,
                "key format: expected \"luthier-measurements-1\", got \"x\"",
            ),
            (
                r#"{"format": "luthier-measurements-1", "measurements": [{"name": "a", "los": 1}]}"#,
                "unknown field `los`",
            ),
            (
                r#"{"format": "luthier-measurements-1", "measurements": [{"name": "a", "perplexity": -1}]}"#,
                "measurement \"a\", key perplexity: expected a number of 0 or more, got -1",
            ),
        ] {
            std::fs::write(dir.path().join(MEASUREMENTS_FILE), text).unwrap();
            assert!(refusal().contains(want), "{}", refusal());
        }
        let nan = Measurement { perplexity: Some(f64::NAN), ..named("a") };
        std::fs::remove_file(dir.path().join(MEASUREMENTS_FILE)).unwrap();
        assert!(record_measurements(dir.path(), &[nan]).is_err());
    }
}
