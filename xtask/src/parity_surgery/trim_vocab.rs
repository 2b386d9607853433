//! `luthier trim-vocab` beside lm-vocab-trimmer, on a random model of mT5's layout; and mt5-small's own numbers.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Check;
use crate::python_env::{VOCABTRIMMER, succeed};

/// What mt5-small has when it is cut to 15,002 pieces (lm-vocab-trimmer's published models).
const SMALL: (u64, u64) = (15_002, 59_424_128);

pub(super) fn run(program: &Path, folder: &Path) -> Result<Vec<Check>> {
    let script = crate::root().join("tools/parity/trim_vocab.py");
    let python = VOCABTRIMMER.interpreter()?;
    let text = crate::root().join("models/builtin/text/northanger_abbey_1_24.txt");
    let python = |what: &str, text: Option<&Path>| -> Result<String> {
        let mut command = Command::new(&python);
        let output = command.arg(&script).arg(what).arg(folder).args(text).output()?;
        ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let n_tokens = python("make", Some(&text))?;
    let n_tokens = n_tokens.lines().last().context("the script prints a number")?.trim().to_string();
    let mut trim = Command::new(program);
    trim.arg("trim-vocab").arg(folder.join("model")).arg(folder.join("ours"));
    trim.arg("--corpus").arg(folder.join("corpus.jsonl")).args(["--keep", &n_tokens, "--json"]);
    succeed(trim.stdout(Stdio::null()))?;
    let found = python("compare", None)?;
    let found: Value =
        serde_json::from_str(found.lines().last().unwrap_or_default()).context("what the script prints")?;
    let is_empty = |key: &str| found[key].as_array().is_some_and(Vec::is_empty);
    let mut checks = vec![
        Check {
            line: format!(
                "trim-vocab tokens: all {} of lm-vocab-trimmer's are among our {}, and the others are those that always stay \
                 (missing {}, more {})",
                found["theirs"], found["ours"], found["missing"], found["more"]
            ),
            is_fine: is_empty("missing") && is_empty("more"),
        },
        Check {
            line: format!("trim-vocab rows: {} have the same row for each token", found["tables"]),
            is_fine: found["rows_equal"] == true,
        },
        Check {
            line: format!("trim-vocab: all {} other tensors are the same", found["n_rest"]),
            is_fine: found["rest_equal"] == true && found["n_rest"].as_u64() > Some(0),
        },
    ];
    python("small", None)?;
    checks.push(small(program, folder)?);
    Ok(checks)
}

/// mt5-small's shape, cut to as many pieces as lm-vocab-trimmer's models have.
fn small(program: &Path, folder: &Path) -> Result<Check> {
    let mut trim = Command::new(program);
    trim.arg("trim-vocab").arg(folder.join("mt5-small")).arg(folder.join("mt5-small-trimmed"));
    trim.arg("--corpus").arg(folder.join("words.txt")).args(["--keep", &SMALL.0.to_string(), "--json"]);
    let output = trim.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{trim:?} ended with {}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).context("what trim-vocab prints")?;
    let after = &report["after"];
    Ok(Check {
        line: format!("trim-vocab mt5-small: {after}"),
        is_fine: after["vocab_size"] == SMALL.0 && after["parameter_size_full"] == SMALL.1,
    })
}
