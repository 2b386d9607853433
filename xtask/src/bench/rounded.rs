//! The part of `cargo xtask bench decode` for bitsandbytes' types: SmolLM2-135M beside bitsandbytes in transformers on CPU, from
//! the same folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::decode::{NEW_TOKENS, PROMPT_TOKENS};
use super::{json_of, median, say, write_run};
use crate::python_env::{BITSANDBYTES, succeed};

/// The types, as `luthier quantize` calls them.
pub(super) const TYPES: [&str; 3] = ["nf4", "fp4", "int8"];

/// One kind of work, and the key of its figure on both sides.
const WORKS: [&str; 3] = ["prefill", "after", "from_nothing"];

/// Runs both sides `rounds` times in turn and prints medians and ratios.
pub(super) fn compare(kind: &str, program: &Path, rounds: usize, threads: &str) -> Result<()> {
    let python = BITSANDBYTES.interpreter()?;
    let folder = smollm2(program, kind)?;
    let counts = [PROMPT_TOKENS, NEW_TOKENS].map(|n| n.to_string());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let own = |prompt: &str| -> Result<Value> {
            let mut command = Command::new(program);
            command.arg("bench").arg(&folder).args(["--prompt-tokens", prompt, "--new-tokens", &counts[1]]);
            json_of(command.args(["--threads", threads, "--json"]))
        };
        let (after, from_nothing) = (own(&counts[0])?, own("1")?);
        ours.push(json!({
            WORKS[0]: after["prefill_tokens_per_s"], WORKS[1]: after["decode_tokens_per_s"],
            WORKS[2]: from_nothing["decode_tokens_per_s"], "peak_rss_bytes": after["peak_rss_bytes"],
        }));
        let mut command = Command::new(&python);
        command.arg(crate::root().join("tools/reference/bitsandbytes_decode.py")).arg(&folder);
        command.args(["--prompt", &counts[0], "--new", &counts[1], "--threads", threads]);
        theirs.push(json_of(&mut command)?);
    }
    let mut ratios = serde_json::Map::new();
    let mut words = Vec::new();
    for work in WORKS {
        let (own, peer) = (median(&ours, work)?, median(&theirs, work)?);
        ratios.insert(work.to_string(), json!(own / peer));
        words.push(format!("{work} {own:.0} to {peer:.1} tokens/s ({:.2} x)", own / peer));
    }
    say(&format!("{kind}: {} of bitsandbytes", words.join(", ")));
    let summary = json!({
        "rounds": rounds, "threads": threads, "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS,
        "ratios": ratios, "luthier": ours, "bitsandbytes": theirs,
    });
    write_run(&format!("decode-{kind}"), &summary)
}

/// SmolLM2-135M in a type, made where it is missing.
fn smollm2(program: &Path, kind: &str) -> Result<PathBuf> {
    let home = crate::root().join("target/bench");
    std::fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let (plain, folder) = (home.join("smollm2-135m-f32"), home.join(format!("smollm2-135m-{kind}")));
    if !plain.exists() {
        let gguf = crate::fetch_models::smollm2()?;
        succeed(Command::new(program).arg("convert").args([&gguf, &plain]).args(["--dtype", "f32"]))?;
    }
    if !folder.exists() {
        succeed(Command::new(program).arg("quantize").args([&plain, &folder]).args(["--to", kind]))?;
    }
    Ok(folder)
}
