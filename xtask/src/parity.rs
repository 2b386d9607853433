//! `cargo xtask parity [--without-llama-cpp]`: compares the program with transformers and llama.cpp on SmolLM2.
//!
//! Greedy tokens of ten prompts from the GGUF file and from the folder converted from it, logits, and perplexity.
//! Slow (builds llama.cpp once, minutes of computing); what it makes lies under target/parity.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::llama_cpp::{self, LlamaCpp};
use crate::python_env::succeed;

/// New tokens for each prompt.
const NEW_TOKENS: usize = 32;
/// Where the two best logits lie closer than this, rounding of f32 sums may decide between them.
const TIE_MARGIN: f64 = 1e-3;
/// What llama-completion writes where the model ended by itself.
const END_MARK: &str = " [end of text]";

/// Prints one line a comparison; an error when any of them fails.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let with_llama_cpp = match arguments {
        [] => true,
        [flag] if flag == "--without-llama-cpp" => false,
        _ => anyhow::bail!("parity takes only --without-llama-cpp, came {arguments:?}"),
    };
    let root = crate::root();
    let work = root.join("target/parity");
    std::fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let gguf = crate::fetch_models::smollm2()?;
    let python = crate::python_env::TRANSFORMERS.interpreter()?;
    let setting = Setting {
        luthier: crate::built_program()?,
        prompts: serde_json::from_slice(&std::fs::read(root.join("tools/parity/prompts.json"))?)?,
        text: sample_text(&root, &work)?,
        work,
    };
    let folder = setting.converted(&gguf, "smollm2")?;
    let full = setting.converted(&folder, "smollm2-f32.gguf")?;
    let mut failures = Vec::new();
    for (name, model, reference) in [("folder", &folder, "-"), ("GGUF", &gguf, path_text(&gguf)?)] {
        let reference = setting.transformers(&python, &folder, reference, name)?;
        setting.compare_with_transformers(name, model, &reference, &mut failures)?;
    }
    if with_llama_cpp {
        let llama_cpp = llama_cpp::build()?;
        for (name, model, bound) in [("f32", &full, 0.001), ("Q4_1", &gguf, 0.006)] {
            setting.compare_with_llama_cpp(&llama_cpp, name, model, bound, &mut failures)?;
        }
    }
    ensure!(failures.is_empty(), "{} comparisons failed:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

struct Setting {
    luthier: PathBuf,
    prompts: Vec<String>,
    text: PathBuf,
    work: PathBuf,
}

impl Setting {
    /// What `luthier convert` makes of a model.
    fn converted(&self, model: &Path, name: &str) -> Result<PathBuf> {
        let out = self.work.join(name);
        succeed(Command::new(&self.luthier).arg("convert").args([model, &out]).arg("--force"))?;
        Ok(out)
    }

    /// The one JSON object that the program prints.
    fn luthier(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.luthier);
        command.args(arguments).args(["--threads", "2", "--json"]);
        let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn transformers(&self, python: &Path, folder: &Path, gguf: &str, name: &str) -> Result<Value> {
        let root = crate::root();
        let out = self.work.join(format!("transformers-{name}.json"));
        let mut command = Command::new(python);
        command.arg(root.join("tools/parity/reference.py")).arg(folder).arg(gguf);
        succeed(command.arg(root.join("tools/parity/prompts.json")).arg(&self.text).arg(&out))?;
        Ok(serde_json::from_slice(&std::fs::read(out)?)?)
    }

    fn compare_with_transformers(
        &self,
        name: &str,
        model: &Path,
        reference: &Value,
        failures: &mut Vec<String>,
    ) -> Result<()> {
        let model = path_text(model)?;
        for (prompt, wanted) in self.prompts.iter().zip(reference["prompts"].as_array().into_iter().flatten())
        {
            let ours = self.generate(model, prompt, &["--ignore-eos"])?;
            let same_prompt = ours["prompt_token_ids"] == wanted["prompt_token_ids"];
            let verdict = first_difference(&ours["token_ids"], wanted);
            let line = format!(
                "{name} against transformers, {prompt:?}: same prompt tokens {same_prompt}, {verdict}"
            );
            note(line, same_prompt && verdict.is_fine(), failures);
        }
        let text = path_text(&self.text)?;
        let ours = self.luthier(&["perplexity", model, "--text", text, "--window", "512"])?;
        let ratio = ratio(&ours["nll_nats_per_token"], &reference["nll_nats_per_token"])?;
        let line = format!("{name} against transformers, perplexity ratio minus one: {:.2e}", ratio);
        note(line, ratio.abs() <= 0.001, failures);
        Ok(())
    }

    fn compare_with_llama_cpp(
        &self,
        llama_cpp: &LlamaCpp,
        name: &str,
        model: &Path,
        bound: f64,
        failures: &mut Vec<String>,
    ) -> Result<()> {
        let path = path_text(model)?;
        for prompt in &self.prompts {
            let ours = self.generate(path, prompt, &[])?;
            let ours = ours["text"].as_str().unwrap_or_default();
            let theirs = llama_cpp.complete(model, prompt, NEW_TOKENS)?;
            let theirs = theirs.trim_end();
            let theirs = theirs.strip_suffix(END_MARK).unwrap_or(theirs);
            let same = ours.trim_end() == theirs.trim_end();
            let line =
                format!("{name} against llama.cpp, {prompt:?}: {}", if same { "same" } else { "differs" });
            // Quantised files are computed with rounded activations on either side, so that only f32 must agree.
            note(format!("{line}\n  ours   {ours:?}\n  theirs {theirs:?}"), same || bound > 0.001, failures);
        }
        let text = path_text(&self.text)?;
        let method = ["--method", "llama.cpp", "--window", "512"];
        let ours = self.luthier(&[&["perplexity", path, "--text", text], &method[..]].concat())?;
        let ours = ours["perplexity"].as_f64().context("perplexity printed no number")?;
        let theirs = llama_cpp.perplexity(model, &self.text, 2)?;
        let line = format!("{name} against llama-perplexity: ours {ours:.4}, theirs {theirs:.4}");
        note(line, (ours / theirs - 1.0).abs() <= bound, failures);
        Ok(())
    }

    fn generate(&self, model: &str, prompt: &str, flags: &[&str]) -> Result<Value> {
        let n_tokens = NEW_TOKENS.to_string();
        let arguments = ["generate", model, "--prompt", prompt, "--max-new-tokens", &n_tokens];
        self.luthier(&[&arguments[..], flags].concat())
    }
}

/// How two greedy continuations compare.
enum Verdict {
    Same,
    Differs { position: usize, margin: f64 },
}

impl Verdict {
    fn is_fine(&self) -> bool {
        !matches!(self, Verdict::Differs { margin, .. } if *margin >= TIE_MARGIN)
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::Same => write!(f, "same tokens"),
            Verdict::Differs { position, margin } => {
                write!(
                    f,
                    "differs from new token {position} on, where their two best logits lie {margin:.4} apart"
                )
            }
        }
    }
}

fn first_difference(ours: &Value, wanted: &Value) -> Verdict {
    let theirs = wanted["token_ids"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours = ours.as_array().map(Vec::as_slice).unwrap_or_default();
    match (0..theirs.len()).find(|position| ours.get(*position) != theirs.get(*position)) {
        None => Verdict::Same,
        Some(position) => {
            let margin = wanted["margins"][position].as_f64().unwrap_or(f64::INFINITY);
            Verdict::Differs { position, margin }
        }
    }
}

/// exp(a) / exp(b) - 1.
fn ratio(a: &Value, b: &Value) -> Result<f64> {
    let number = |value: &Value| value.as_f64().context("no nll_nats_per_token was printed");
    Ok((number(a)? - number(b)?).exp_m1())
}

fn note(line: String, fine: bool, failures: &mut Vec<String>) {
    println!("{} {line}", if fine { "ok  " } else { "FAIL" });
    if !fine {
        failures.push(line);
    }
}

/// The first 20,000 bytes of a text that is in the repository, cut at a line.
fn sample_text(root: &Path, work: &Path) -> Result<PathBuf> {
    let source = root.join("LICENSE-APACHE");
    let text =
        std::fs::read_to_string(&source).with_context(|| format!("cannot read {}", source.display()))?;
    let target = work.join("text.txt");
    std::fs::write(&target, text).with_context(|| format!("cannot write {}", target.display()))?;
    Ok(target)
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
