//! `luthier grow`: a larger model that begins as a small one.

use std::path::PathBuf;

use luthier_surgery::grow::{self, Axis, Operation};
use serde::Deserialize;
use serde_json::json;

use super::Act;
use crate::bounded::{AtLeast, NotNegative, Typed};
use crate::dtype::FloatType;
use crate::places;
use crate::session::{Report, Session};

/// Makes a larger model of a small one, to be trained further: G times the layers (both stacks of an encoder-decoder), or G
/// times the width of the residual stream, of heads and of feed-forward blocks. stack repeats the layers (G_stack,
/// arXiv:2405.15319: the best beginning for training, with G = 4; the function changes); zero and split keep the function,
/// which is checked on logits before the output is put in place; random begins what is new afresh. Where MODEL is a
/// checkpoint of a training run, its optimizer's state is grown too.
///
/// --plan-timing says instead after how many tokens a small model is best grown, for a model of N parameters in the end and
/// compute C: log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Grow {
    /// The model
    #[serde(default)]
    model: Option<String>,
    /// The folder or .gguf file to write
    #[serde(default)]
    out: Option<PathBuf>,
    /// How: stack, split, zero or random
    #[arg(long, value_name = "HOW", value_parser = Operation::NAMES)]
    op: Option<String>,
    /// G times the layers
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    depth: Option<AtLeast<1>>,
    /// G times the width
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    width: Option<AtLeast<1>>,
    /// For split width: copies get shares of a weight that differ by this deviation, relative to an equal one, so that they
    /// learn apart [default: 0]
    #[arg(long, value_name = "STD", allow_negative_numbers = true)]
    asymmetry: Option<NotNegative>,
    /// Seed of fresh values and unequal shares [default: 1]
    #[arg(long)]
    seed: Option<u64>,
    /// The type of all weights; without it types are kept
    #[arg(long)]
    dtype: Option<FloatType>,
    /// Replace an existing output
    #[arg(long)]
    #[serde(default)]
    force: bool,
    /// Say what would be done, from headers alone, and do nothing
    #[arg(long)]
    #[serde(default)]
    plan: bool,
    /// Say when to grow, for --params and --flops or --tokens
    #[arg(long)]
    #[serde(default)]
    plan_timing: bool,
    /// For --plan-timing: parameters of the grown model, such as 7B
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    params: Option<Typed<Quantity>>,
    /// For --plan-timing: compute of its training in FLOPs, such as 7.2e23
    #[arg(long, value_name = "C", allow_negative_numbers = true)]
    flops: Option<Typed<Quantity>>,
    /// For --plan-timing: tokens of its training instead of compute, which is 6 times N times that
    #[arg(long, value_name = "D", allow_negative_numbers = true)]
    tokens: Option<Typed<Quantity>>,
}

/// A large number as people write it: 7e23, 8B, 15T, 1_000.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Quantity(f64);

impl std::str::FromStr for Quantity {
    type Err = String;

    fn from_str(text: &str) -> Result<Quantity, String> {
        let plain = text.trim().replace('_', "");
        let units = [('k', 1e3), ('m', 1e6), ('g', 1e9), ('b', 1e9), ('t', 1e12)];
        let lower = plain.to_ascii_lowercase();
        let unit = units.iter().find_map(|(end, unit)| Some((lower.strip_suffix(*end)?, *unit)));
        let (digits, unit) = unit.unwrap_or((&lower, 1.0));
        let number = digits.parse::<f64>().ok().map(|number| number * unit);
        let number = number.filter(|number| number.is_finite() && *number >= 1.0);
        number
            .map(Quantity)
            .ok_or_else(|| format!("wanted a number of 1 or more, such as 8B or 7.2e23, came {text}"))
    }
}

impl Act for Grow {
    const NAME: &'static str = "grow";
    const ABOUT: &'static str = "Make a larger model that begins as a small one, or say when to";

    fn check(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(what.to_string());
        if self.plan_timing {
            let grows = self.model.is_some() || self.out.is_some() || self.op.is_some();
            return match (&self.params, &self.flops, &self.tokens) {
                _ if grows || self.depth.is_some() || self.width.is_some() || self.plan => wrong(
                    "--plan-timing grows nothing: leave MODEL, OUT, --op, --depth, --width and --plan out",
                ),
                (Some(_), Some(_), None) | (Some(_), None, Some(_)) => Ok(()),
                (Some(_), Some(_), Some(_)) => wrong("--flops and --tokens: wanted one of the two"),
                _ => wrong("--plan-timing: wanted --params N and --flops C, or --params N and --tokens D"),
            };
        }
        if self.params.is_some() || self.flops.is_some() || self.tokens.is_some() {
            return wrong("--params, --flops and --tokens are for --plan-timing");
        }
        if self.model.is_none() || self.out.is_none() {
            return wrong("wanted MODEL and OUT, or --plan-timing");
        }
        let Some(op) = &self.op else { return wrong("wanted how: --op stack, split, zero or random") };
        let Some(operation) = Operation::from_name(op) else {
            return Err(format!("op: wanted stack, split, zero or random, came {op}"));
        };
        match (self.depth, self.width) {
            (None, None) => return wrong("wanted what grows: --depth G or --width G"),
            (Some(_), Some(_)) => {
                return wrong(
                    "--depth and --width: wanted one of the two; grow the result again for the other",
                );
            }
            _ => {}
        }
        if operation == Operation::Stack && self.width.is_some() {
            return wrong(
                "--op stack repeats layers and knows no width; take --op split --width for copies side by side, or --op \
                 stack --depth",
            );
        }
        let shares = self.asymmetry.is_some_and(|NotNegative(deviation)| deviation > 0.0);
        if shares && (operation != Operation::Split || self.width.is_none()) {
            return wrong("--asymmetry is for --op split --width, whose copies would else learn the same");
        }
        Ok(())
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        if self.plan_timing {
            return self.timing();
        }
        let (Some(model), Some(out)) = (&self.model, &self.out) else {
            anyhow::bail!("wanted MODEL and OUT");
        };
        let input = places::input(model)?;
        let options = self.options();
        places::check_out(out, self.force, &[&input])?;
        if self.plan {
            return super::plan_report(&grow::plan(&input, out, &options)?);
        }
        let result = grow::run(&input, out, &options)?;
        for note in &result.notes {
            session.note(note);
        }
        let kept = match result.keeps_function {
            true => "the function is kept",
            false => "the function is not kept",
        };
        let text = format!(
            "{}: {} parameters, {} before; {} tensors, {} of them as they were; {kept}: logits differ from the parent's \
             by {:.1e}, {:.1e} of the largest",
            out.display(),
            result.parameters.1,
            result.parameters.0,
            result.tensors,
            result.copied_tensors,
            result.logits_difference.max_abs,
            result.logits_difference.relative
        );
        let mut json = serde_json::to_value(&result)?;
        json["out"] = json!(out);
        Ok(Report { json, text })
    }
}

impl Grow {
    fn options(&self) -> grow::Options {
        grow::Options {
            operation: self.op.as_deref().and_then(Operation::from_name).unwrap_or(Operation::Stack),
            axis: match (self.depth, self.width) {
                (None, Some(AtLeast(times))) => Axis::Width(times),
                (times, _) => Axis::Depth(times.map_or(1, |AtLeast(times)| times)),
            },
            seed: self.seed.unwrap_or(1),
            asymmetry: self.asymmetry.map_or(0.0, |NotNegative(deviation)| deviation),
            dtype: self.dtype.map(FloatType::dtype),
            force: self.force,
        }
    }

    fn timing(&self) -> anyhow::Result<Report> {
        let value =
            |quantity: &Option<Typed<Quantity>>| quantity.as_ref().map(|Typed(Quantity(value))| *value);
        let parameters = value(&self.params).unwrap_or(1.0);
        let flops = value(&self.flops).or(value(&self.tokens).map(|tokens| 6.0 * parameters * tokens));
        let timing = grow::timing(parameters, flops.unwrap_or(1.0));
        let mut text = format!(
            "train a small model of a quarter of the layers on {} tokens, then grow it with --op stack --depth {}, and go on \
             to {} tokens in all ({parameters:.3e} parameters, {:.3e} FLOPs)",
            short(timing.growth_tokens),
            timing.growth_factor,
            short(timing.tokens),
            timing.flops
        );
        if !timing.is_sensible {
            text.push_str("\nthat is more than the compute pays for: growing gains nothing here");
        }
        Ok(Report { json: serde_json::to_value(timing)?, text })
    }
}

/// 6.58B.
fn short(number: f64) -> String {
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")];
    match units.iter().find(|(unit, _)| number >= *unit) {
        Some((unit, name)) => format!("{:.2}{name}", number / unit),
        None => format!("{number:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_read_as_people_write_them() {
        for (text, wanted) in
            [("8B", 8e9), ("7.2e23", 7.2e23), ("15T", 1.5e13), ("1_000", 1e3), ("125m", 1.25e8)]
        {
            let Quantity(came) = text.parse().unwrap();
            assert!((came / wanted - 1.0).abs() < 1e-12, "{text}");
        }
        for wrong in ["", "B", "-3", "0", "nan", "inf", "8Q"] {
            assert!(wrong.parse::<Quantity>().is_err(), "{wrong}");
        }
        assert_eq!((short(6.58e9), short(12.0)), ("6.58B".to_string(), "12".to_string()));
    }
}
