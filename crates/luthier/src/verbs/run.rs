//! `luthier run`: a chain of verbs from one recipe. Steps that are done and whose inputs have not changed are skipped.

mod chain_inputs;

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Act, VERBS, Verb, find};
use crate::recipe::{self, Kind};
use crate::session::{Report, Session};
use crate::{fingerprint, places};

/// Runs the steps of a chain in order.
///
/// The recipe holds `out`, the folder in which the chain keeps its state, and `steps`, a list of `verb: {keys}`; the
/// keys are the verb's own flags (`pretrain` takes `recipe: FILE`).
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Run {
    /// The chain: `out: DIR` and `steps: [{adapt: {model: builtin, out: DIR/adapted}}, ...]`
    recipe: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chain {
    out: PathBuf,
    steps: Vec<Map<String, Value>>,
}

/// What is remembered of a finished step: enough to know that doing it again would give the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Done {
    verb: String,
    keys: Value,
    inputs: Value,
    output: Value,
    report: Value,
}

impl Act for Run {
    const NAME: &'static str = "run";
    const ABOUT: &'static str =
        "Run a chain of verbs; unchanged steps are skipped, an interrupted chain goes on";

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let chain: Chain = recipe::from_file(&self.recipe, Kind::Chain)?;
        let steps = chain.steps.iter().map(split_step).collect::<anyhow::Result<Vec<_>>>()?;
        if steps.is_empty() {
            bail!("recipe {}: steps is empty; give at least one", self.recipe.display());
        }
        for (index, (verb_name, keys)) in steps.iter().enumerate() {
            let verb = known_verb(index, verb_name)?;
            (verb.check_step)(keys).with_context(|| format!("step {} ({verb_name})", index + 1))?;
        }
        places::refuse_builtin_name(&chain.out)?;
        let state_file = chain.out.join("run_state.json");
        let made_before = read_state(&state_file)?;
        let is_known =
            |index: usize, verb: &str| made_before.get(index).is_some_and(|done: &Done| done.verb == verb);
        chain_inputs::check(&steps, &chain.out, &is_known)?;
        if chain.out.join("config.json").exists() && !state_file.exists() {
            bail!("out: {} is a model; choose a folder of the chain's own", chain.out.display());
        }
        std::fs::create_dir_all(&chain.out).with_context(|| format!("{}", chain.out.display()))?;
        let mut state = read_state(&state_file)?;
        let mut lines = Vec::new();
        let mut results = Vec::new();
        for (index, (verb_name, keys)) in steps.into_iter().enumerate() {
            let verb = known_verb(index, &verb_name)?;
            let inputs = fingerprint::of_inputs(&keys)?;
            let known = state.get(index).filter(|done| {
                // A training run knows by itself whether it is finished.
                verb_name != super::pretrain::Pretrain::NAME
                    && done.verb == verb_name
                    && done.keys == keys
                    && done.inputs == inputs
                    && fingerprint::of_output(&keys).is_ok_and(|output| output == done.output)
            });
            let mut is_new = known.is_none();
            if let Some(done) = known.cloned() {
                session.note(&format!("step {}: {verb_name}: unchanged, skipped", index + 1));
                results.push(done.report);
            } else {
                session.note(&format!("step {}: {verb_name}", index + 1));
                let mut options = keys.clone();
                replace_stale_output(
                    &mut options,
                    state.get(index).is_some_and(|done| done.verb == verb_name),
                );
                let report = (verb.run_step)(&options, session)
                    .with_context(|| format!("step {} ({verb_name})", index + 1))?;
                state.truncate(index);
                let output = fingerprint::of_output(&keys)?;
                let report = report.json;
                is_new = report.get("was_finished") != Some(&Value::Bool(true));
                results.push(report.clone());
                state.push(Done { verb: verb_name.clone(), keys, inputs, output, report });
                write_state(&state_file, &state)?;
            }
            lines.push(format!("{}. {verb_name}: {}", index + 1, if is_new { "done" } else { "unchanged" }));
        }
        Ok(Report { json: json!({ "steps": results }), text: lines.join("\n") })
    }
}

fn known_verb(index: usize, name: &str) -> anyhow::Result<&'static Verb> {
    let meant = recipe::nearest(name, VERBS.iter().map(|verb| verb.name));
    let meant = meant.map_or("see luthier --help".to_string(), |verb| format!("did you mean {verb}?"));
    find(name).ok_or_else(|| anyhow!("step {}: no verb is called {name}; {meant}", index + 1))
}

/// A step is a map with one entry, the verb.
fn split_step(step: &Map<String, Value>) -> anyhow::Result<(String, Value)> {
    match step.iter().next() {
        Some((verb, keys)) if step.len() == 1 => {
            if verb == Run::NAME {
                bail!("a chain cannot hold a chain");
            }
            Ok((verb.clone(), keys.clone()))
        }
        _ => bail!(
            "a step is one verb with its keys, such as `adapt: {{model: builtin, out: adapted}}`, got {step:?}"
        ),
    }
}

/// A step that this chain made before and that must be made anew may replace its own output.
fn replace_stale_output(keys: &mut Value, made_before: bool) {
    if let Some(keys) = keys.as_object_mut()
        && made_before
        && keys.contains_key("out")
        && !keys.contains_key("steps")
        && !keys.contains_key("objective")
    {
        keys.insert("force".to_string(), Value::Bool(true));
    }
}

fn read_state(path: &Path) -> anyhow::Result<Vec<Done>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{}: not a chain's state; remove it to start over", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn write_state(path: &Path, state: &[Done]) -> anyhow::Result<()> {
    let temporary = path.with_extension("json.part");
    std::fs::write(&temporary, serde_json::to_vec_pretty(state)?)
        .with_context(|| temporary.display().to_string())?;
    std::fs::rename(&temporary, path).with_context(|| path.display().to_string())
}
