//! Quality against cost: which models no other beats, and the page that shows it.

use std::path::Path;

use crate::measurements::{Measurement, read_measurements};
use crate::report::{Page, Unit, render_page};
use crate::{Error, Result};

/// What counts as quality; lower is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// Nats per token: compares models of one tokenizer.
    ValidationLoss,
    /// Bits per byte of text: compares any models.
    BitsPerByte,
}

impl Quality {
    /// Bits per byte where every measurement with a loss has them, otherwise the loss.
    pub fn of(measurements: &[Measurement]) -> Quality {
        let bits = measurements.iter().filter(|one| one.bits_per_byte.is_some()).count();
        let both =
            measurements.iter().all(|one| one.bits_per_byte.is_some() || one.validation_loss_nats.is_none());
        if bits > 0 && both { Quality::BitsPerByte } else { Quality::ValidationLoss }
    }

    /// Its value, where it was measured.
    pub fn value(self, measurement: &Measurement) -> Option<f64> {
        match self {
            Quality::ValidationLoss => measurement.validation_loss_nats,
            Quality::BitsPerByte => measurement.bits_per_byte,
        }
    }

    /// For an axis.
    pub fn title(self) -> &'static str {
        match self {
            Quality::ValidationLoss => "validation loss, nats per token",
            Quality::BitsPerByte => "bits per byte",
        }
    }

    /// How its values are written.
    pub fn unit(self) -> Unit {
        Unit::Loss
    }
}

/// What quality is paid with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Numbers in the weights.
    Parameters,
    /// Bytes on disk.
    FileBytes,
    /// Speed: the one where more is better.
    DecodeSpeed,
    /// Peak resident bytes.
    PeakMemory,
}

impl Cost {
    /// In the order of a report.
    pub const ALL: [Cost; 4] = [Cost::Parameters, Cost::FileBytes, Cost::DecodeSpeed, Cost::PeakMemory];

    /// Its value, where it was measured.
    pub fn value(self, measurement: &Measurement) -> Option<f64> {
        match self {
            Cost::Parameters => measurement.parameters.map(|count| count as f64),
            Cost::FileBytes => measurement.file_bytes.map(|bytes| bytes as f64),
            Cost::DecodeSpeed => measurement.decode_tokens_per_s,
            Cost::PeakMemory => measurement.peak_rss_bytes.map(|bytes| bytes as f64),
        }
    }

    /// For an axis.
    pub fn title(self) -> &'static str {
        match self {
            Cost::Parameters => "parameters",
            Cost::FileBytes => "file size",
            Cost::DecodeSpeed => "decoding, tokens per second",
            Cost::PeakMemory => "peak memory",
        }
    }

    /// For a heading.
    pub fn name(self) -> &'static str {
        match self {
            Cost::DecodeSpeed => "decoding speed",
            Cost::Parameters | Cost::FileBytes | Cost::PeakMemory => self.title(),
        }
    }

    /// The key in measurements.json.
    pub fn key(self) -> &'static str {
        match self {
            Cost::Parameters => "parameters",
            Cost::FileBytes => "file_bytes",
            Cost::DecodeSpeed => "decode_tokens_per_s",
            Cost::PeakMemory => "peak_rss_bytes",
        }
    }

    /// How its values are written.
    pub fn unit(self) -> Unit {
        match self {
            Cost::Parameters => Unit::Count,
            Cost::FileBytes | Cost::PeakMemory => Unit::Bytes,
            Cost::DecodeSpeed => Unit::Rate,
        }
    }

    /// Whether more is better.
    pub fn more_is_better(self) -> bool {
        self == Cost::DecodeSpeed
    }
}

/// Numbers of the measurements that are on the front: no other is at least as good in both and better in one. Those
/// without a value are not. In rising order of cost.
pub fn pareto_front(measurements: &[Measurement], quality: Quality, cost: Cost) -> Vec<usize> {
    let sign = if cost.more_is_better() { -1.0 } else { 1.0 };
    let points: Vec<(usize, f64, f64)> = measurements
        .iter()
        .enumerate()
        .filter_map(|(number, one)| Some((number, quality.value(one)?, cost.value(one)? * sign)))
        .collect();
    let mut front: Vec<&(usize, f64, f64)> = points
        .iter()
        .filter(|(_, q, c)| !points.iter().any(|(_, oq, oc)| oq <= q && oc <= c && (oq < q || oc < c)))
        .collect();
    front.sort_by(|a, b| (a.2 * sign).total_cmp(&(b.2 * sign)).then(a.0.cmp(&b.0)));
    front.into_iter().map(|(number, _, _)| *number).collect()
}

/// The measurements of several folders. A name that comes from two folders gets its folder's name behind it.
///
/// # Errors
/// Those of [`read_measurements`]; no folders, or folders without a measurement.
pub fn collect_measurements(dirs: &[&Path]) -> Result<Vec<Measurement>> {
    let mut found: Vec<(&Path, Measurement)> = Vec::new();
    for dir in dirs {
        found.extend(read_measurements(dir)?.into_iter().map(|one| (*dir, one)));
    }
    if found.is_empty() {
        let got = format!("{} folders without a measurement", dirs.len());
        return Err(Error::Option { name: "DIR", expected: "folders with measurements".into(), got });
    }
    let twice = |name: &str| found.iter().filter(|(_, one)| one.name == name).count() > 1;
    let named = |(dir, one): &(&Path, Measurement)| match twice(&one.name) {
        true => Measurement { name: format!("{} ({})", one.name, dir.display()), ..one.clone() },
        false => one.clone(),
    };
    Ok(found.iter().map(named).collect())
}

/// The page that shows `measurements`.
///
/// # Errors
/// A chart that cannot be drawn.
pub fn frontier_page(measurements: &[Measurement]) -> Result<String> {
    let quality = Quality::of(measurements);
    let mut paragraphs = vec![format!(
        "{} measured. Quality is {}, measured on a text; lower is better.",
        match measurements.len() {
            1 => "One model".to_string(),
            count => format!("{count} models"),
        },
        quality.title(),
    )];
    if quality == Quality::ValidationLoss && measurements.len() > 1 {
        paragraphs.push(
            "Losses per token compare only models with the same tokenizer, measured on the same text.".into(),
        );
    }
    let mut texts: Vec<&str> = measurements.iter().filter_map(|one| one.text.as_deref()).collect();
    texts.sort_unstable();
    texts.dedup();
    if texts.len() > 1 {
        paragraphs.push(format!(
            "Careful: the losses were not measured alike, so that they do not compare: {}.",
            texts.join("; ")
        ));
    }
    render_page(&Page {
        title: "Quality against cost".into(),
        paragraphs,
        measurements: measurements.to_vec(),
        ..Page::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, loss: f64, parameters: u64, speed: f64) -> Measurement {
        Measurement {
            name: name.into(),
            validation_loss_nats: Some(loss),
            parameters: Some(parameters),
            decode_tokens_per_s: Some(speed),
            ..Measurement::default()
        }
    }

    #[test]
    fn the_front_is_what_no_other_beats() {
        let models = [
            model("big", 2.0, 100, 10.0),
            model("worse", 3.0, 100, 10.0),
            model("small", 3.0, 10, 50.0),
            model("twin of small", 3.0, 10, 50.0),
            model("beaten in size only", 2.5, 120, 90.0),
            Measurement { name: "unmeasured".into(), ..Measurement::default() },
        ];
        assert_eq!(pareto_front(&models, Quality::ValidationLoss, Cost::Parameters), [2, 3, 0]);
        assert_eq!(pareto_front(&models, Quality::ValidationLoss, Cost::DecodeSpeed), [0, 4]);
        assert!(pareto_front(&models, Quality::ValidationLoss, Cost::FileBytes).is_empty());
    }

    #[test]
    fn bits_per_byte_count_where_all_have_them() {
        let mut models = [model("a", 2.0, 1, 1.0), model("b", 2.0, 1, 1.0)];
        models[0].bits_per_byte = Some(1.0);
        assert_eq!(Quality::of(&models), Quality::ValidationLoss);
        models[1].bits_per_byte = Some(1.0);
        assert_eq!(Quality::of(&models), Quality::BitsPerByte);
    }

    #[test]
    fn folders_are_joined_and_equal_names_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for (path, loss) in [(&one, 2.0), (&two, 3.0)] {
            std::fs::create_dir(path).unwrap();
            crate::measurements::record_measurements(path, &[model("adapted", loss, 1, 1.0)]).unwrap();
        }
        let all = collect_measurements(&[&one, &two]).unwrap();
        assert_eq!(all.len(), 2);
        assert!(all[0].name.starts_with("adapted (") && all[0].name != all[1].name);
        assert!(collect_measurements(&[]).is_err());
        assert!(collect_measurements(&[dir.path()]).is_err());
    }
}
