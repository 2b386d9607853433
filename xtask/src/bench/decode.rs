//! `cargo xtask bench decode`: reading a prompt and decoding beside other programs, file by file, interleaved in one run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::peers::Peer;
use super::{billion, json_of, machine, median, number, option, peers, rounded, say, write_run};
use crate::python_env::succeed;

pub(super) const HELP: &str =
    "bench decode [--types Q4_0,Q8_0,Q4_K_M,F16 | --model FILE.gguf] [--shape smollm2|billion] [--rounds 5] [--threads 2]
      [--against llama.cpp,transformers,candle,mistralrs]
  SmolLM2-135M (or a Llama of 978 million random parameters) in each type: prompt of 512 tokens, 128 tokens after it, 128
  tokens from an empty context, and 8 sequences together (ours alone). Without --against: llama.cpp, built where it is missing,
  or its programs are in the folder that LUTHIER_LLAMA_CPP names. What cannot be set up is reported and left out. Types nf4,
  fp4 and int8 run beside bitsandbytes instead, whose Python LUTHIER_BITSANDBYTES_PYTHON may name.";

pub(super) const PROMPT_TOKENS: usize = 512;
pub(super) const NEW_TOKENS: usize = 128;
const TOGETHER: usize = 8;

/// One kind of work: its name, and the key of its figure.
pub(super) const WORKS: [&str; 3] = ["prefill", "decode after a prompt", "decode from nothing"];

/// Runs all sides `rounds` times in turn and prints medians and ratios.
pub(super) fn run(arguments: &[String]) -> Result<()> {
    let (rounds, threads) = (number(arguments, "--rounds", 5)?, number(arguments, "--threads", 2)?);
    let program = crate::built_program()?;
    let kinds = option(arguments, "--types").unwrap_or_else(|| "Q4_0,Q8_0,Q4_K_M,F16".to_string());
    let (of_bitsandbytes, kinds): (Vec<&str>, Vec<&str>) =
        kinds.split(',').partition(|kind| rounded::TYPES.contains(kind));
    for kind in of_bitsandbytes {
        rounded::compare(kind, &program, rounds, &threads.to_string())?;
    }
    if kinds.is_empty() {
        return Ok(());
    }
    let peers = peers::named(arguments)?;
    let kinds = kinds.into_iter();
    let shape = option(arguments, "--shape").unwrap_or_else(|| "smollm2".to_string());
    let files = match (option(arguments, "--model"), shape.as_str()) {
        (Some(file), _) => {
            let path = PathBuf::from(&file);
            let name = path.file_stem().map_or(file, |stem| stem.to_string_lossy().into_owned());
            vec![(name, path)]
        }
        (None, "smollm2") => kinds.map(|kind| smollm2(&program, kind)).collect::<Result<_>>()?,
        (None, "billion") => kinds
            .map(|kind| Ok((format!("billion-{kind}"), billion::gguf(&program, kind)?)))
            .collect::<Result<_>>()?,
        (None, other) => bail!("--shape {other}: there are smollm2 and billion"),
    };
    let sides = Sides { program, peers, rounds, threads };
    for (name, file) in &files {
        sides.compare(name, file)?;
    }
    Ok(())
}

/// SmolLM2-135M in a type, made where it is missing.
pub(super) fn smollm2(program: &Path, kind: &str) -> Result<(String, PathBuf)> {
    let folder = crate::root().join("target/bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join(format!("smollm2-135m-{kind}.gguf"));
    if !file.exists() {
        let source = crate::fetch_models::smollm2()?;
        let is_float = ["F32", "F16", "BF16"].contains(&kind);
        let mut make = Command::new(program);
        match is_float {
            true => make.arg("convert").arg(&source).arg(&file).args(["--dtype", &kind.to_lowercase()]),
            false => make.arg("quantize").arg(&source).arg(&file).args(["--to", kind, "--requantize"]),
        };
        succeed(make.stdout(std::process::Stdio::null()))?;
    }
    Ok((kind.to_string(), file))
}

struct Sides {
    program: PathBuf,
    peers: Vec<Peer>,
    rounds: usize,
    threads: usize,
}

impl Sides {
    fn compare(&self, name: &str, file: &Path) -> Result<()> {
        let mut ours = Vec::new();
        let mut theirs: Vec<Vec<Value>> = self.peers.iter().map(|_| Vec::new()).collect();
        for _ in 0..self.rounds {
            ours.push(self.own(file)?);
            for (peer, runs) in self.peers.iter().zip(&mut theirs) {
                runs.push((peer.measure)(file, &self.threads.to_string())?);
            }
        }
        let file_bytes = std::fs::metadata(file)?.len() as f64;
        let memory_gb = machine::memory_gb_per_s(self.threads)?;
        let mut summary = Map::new();
        let mut words = Vec::new();
        for work in WORKS {
            words.push(format!("{work} {:.0}", median(&ours, work)?));
        }
        let read_share = median(&ours, WORKS[2])? * file_bytes / 1e9 / memory_gb;
        say(&format!(
            "{name}: {} tokens/s; the last at {:.0}% of reading memory; {TOGETHER} together {:.2} x one; load {:.0} ms; memory \
             {:.0} MB over the file's {:.0}",
            words.join(", "),
            100.0 * read_share,
            median(&ours, "together")? / median(&ours, WORKS[2])?,
            median(&ours, "load_ms")?,
            (median(&ours, "peak_rss_bytes")? - file_bytes) / 1e6,
            file_bytes / 1e6
        ));
        for (peer, runs) in self.peers.iter().zip(&theirs) {
            let mut ratios = Map::new();
            let mut words = Vec::new();
            for work in WORKS {
                let (own, other) = (median(&ours, work)?, median(runs, work)?);
                ratios.insert(work.to_string(), json!(own / other));
                words.push(format!("{work} {other:.0} tokens/s ({:.2} x)", own / other));
            }
            say(&format!("  {}: {}", peer.name, words.join(", ")));
            summary.insert(peer.name.to_string(), json!({"ratios": ratios, "runs": runs}));
        }
        let summary = json!({
            "rounds": self.rounds, "threads": self.threads, "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS,
            "file_bytes": file_bytes, "memory_read_gb_per_s": memory_gb, "share_of_reading_memory": read_share,
            "luthier": ours, "against": summary,
        });
        write_run(&format!("decode-{name}"), &summary)
    }

    /// One run of each work.
    fn own(&self, file: &Path) -> Result<Value> {
        let run = |prompt: usize, batch: usize| -> Result<Value> {
            let [prompt, new, batch, threads] =
                [prompt, NEW_TOKENS, batch, self.threads].map(|n| n.to_string());
            let mut command = Command::new(&self.program);
            command.arg("bench").arg(file).args(["--prompt-tokens", &prompt, "--new-tokens", &new]);
            json_of(command.args(["--batch", &batch, "--threads", &threads, "--json"]))
        };
        let (after, from_nothing, together) = (run(PROMPT_TOKENS, 1)?, run(1, 1)?, run(1, TOGETHER)?);
        Ok(json!({
            WORKS[0]: after["prefill_tokens_per_s"], WORKS[1]: after["decode_tokens_per_s"],
            WORKS[2]: from_nothing["decode_tokens_per_s"], "together": together["decode_tokens_per_s"],
            "load_ms": after["load_ms"], "peak_rss_bytes": after["peak_rss_bytes"],
        }))
    }
}
