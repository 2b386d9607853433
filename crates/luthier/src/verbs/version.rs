//! `luthier version`: what changed between two releases, and which version number that asks for.

use luthier_surgery::version::{self, Level, Version as Number, VersionDiff};
use serde::Deserialize;
use serde_json::json;

use super::Act;
use crate::places;
use crate::session::{Report, Session};

/// Says what changed from release A to release B. `diff` lists the changes by what they touch; `bump` names the next version
/// with its reasons; `check` compares the versions that the two say of themselves (in the card, else in the place's name, or by
/// --from and --to) with the change, exit code 1 where the number promises less than what changed. MAJOR: tokenizer,
/// vocabulary, architecture, special tokens, template, licence. MINOR: weights, defaults of generation. PATCH: the same values
/// in other files or types, documentation.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Version {
    /// diff, bump or check
    action: Action,
    /// The older release
    a: String,
    /// The newer one
    b: String,
    /// The older release's version
    #[arg(long, value_name = "VERSION")]
    from: Option<String>,
    /// The newer release's version
    #[arg(long, value_name = "VERSION")]
    to: Option<String>,
}

/// What to say of two releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    /// List the changes
    Diff,
    /// Name the next version
    Bump,
    /// Compare the versions with the change
    Check,
}

impl Act for Version {
    const NAME: &'static str = "version";
    const ABOUT: &'static str = "Say what changed between two releases, and which version that asks for";

    fn check(&self) -> Result<(), String> {
        for text in self.from.iter().chain(&self.to) {
            Number::parse(text).map_err(|problem| problem.to_string())?;
        }
        Ok(())
    }

    fn act(self, _session: &Session) -> anyhow::Result<Report> {
        let (a, b) = (places::open(&self.a)?, places::open(&self.b)?);
        let changes = version::run(&a, &b)?;
        let number = |given: &Option<String>, label: &str, checkpoint| match given {
            Some(text) => Number::parse(text).map(Some),
            None => Ok(version::declared(label, checkpoint)),
        };
        let (from, to) = (number(&self.from, &self.a, &a)?, number(&self.to, &self.b, &b)?);
        let mut json = serde_json::to_value(&changes)?;
        json["a"] = json!(self.a);
        json["b"] = json!(self.b);
        json["from"] = json!(from.as_ref().map(ToString::to_string));
        let mut text = words(&changes);
        match self.action {
            Action::Diff => Ok(Report { json, text }),
            Action::Bump => {
                let from = from.map_or_else(|| Number::parse("1.0.0"), Ok)?;
                let next = from.bumped(changes.level).to_string();
                json["from"] = json!(from.to_string());
                json["suggested"] = json!(next);
                text.push_str(&format!("{from} -> {next}"));
                Ok(Report { json, text })
            }
            Action::Check => {
                let verdict = verdict(from.as_ref(), to.as_ref(), changes.level)?;
                json["to"] = json!(to.as_ref().map(ToString::to_string));
                json["ok"] = json!(verdict.is_none());
                json["problem"] = json!(verdict);
                text.push_str(verdict.as_deref().unwrap_or("the version says what changed"));
                Report { json, text }.judged(verdict.is_none())
            }
        }
    }
}

/// What is wrong with the step between two versions for a change of that level; none where nothing is.
fn verdict(from: Option<&Number>, to: Option<&Number>, level: Level) -> anyhow::Result<Option<String>> {
    let (Some(from), Some(to)) = (from, to) else {
        let missing = if from.is_none() { "the older release" } else { "the newer release" };
        let what = format!(
            "{missing} says no version, neither in its card (version:) nor in its name; give --from and --to"
        );
        return Ok((level != Level::None).then_some(what));
    };
    let step = from.step_to(to)?;
    if step >= level {
        return Ok(None);
    }
    let next = from.bumped(level);
    Ok(Some(match step {
        Level::None => format!(
            "both are {from}, but the model changed: a released version is not overwritten; call this one {next}"
        ),
        _ => format!("{from} -> {to} promises a {step:?} change, this is a {level:?} one: call it {next}")
            .to_lowercase(),
    }))
}

fn words(changes: &VersionDiff) -> String {
    let mut text = String::new();
    for change in &changes.changes {
        text.push_str(&format!(
            "{}: {}: {}\n",
            format!("{:?}", change.level).to_uppercase(),
            change.aspect,
            change.what
        ));
    }
    if changes.changes.is_empty() {
        text.push_str("nothing changed\n");
    }
    text
}
