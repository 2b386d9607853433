//! `cargo xtask bench surgery`: merge beside `cp` of its inputs, quantize beside llama-quantize; the peers' outputs are synced
//! to the disk too, as ours are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{billion, median, number, option, say, write_run};
use crate::python_env::succeed;

pub(super) const HELP: &str = "bench surgery [merge|quantize [--types Q8_0,Q4_0]] [--rounds 5] [--threads 2]
  Random Llamas of 978 million parameters, bf16 (a base and two fine-tunes of 2.0 GB each in target/bench). llama.cpp is
  built where it is missing, or its programs are in the folder that LUTHIER_LLAMA_CPP names. Needs 16 GB of disk.";

/// What `quantize` is measured on, unless asked otherwise.
const TYPES: &str = "Q8_0,Q4_0,Q4_K_M,Q5_K_M,Q6_K";

/// Runs what is named, or both.
pub(super) fn run(arguments: &[String]) -> Result<()> {
    let named = arguments.first().filter(|first| !first.starts_with("--")).map(String::as_str);
    ensure!(named.is_none_or(|name| ["merge", "quantize"].contains(&name)), "{HELP}");
    let (rounds, threads) = (number(arguments, "--rounds", 5)?, number(arguments, "--threads", 2)?);
    let bench = Bench {
        folder: crate::root().join("target/bench"),
        program: crate::built_program()?,
        rounds,
        threads: threads.to_string(),
    };
    for (place, seed) in [("base", 0), ("a", 1), ("b", 2)] {
        billion::make(&bench.place(place), seed)?;
    }
    if named != Some("quantize") {
        bench.merge()?;
    }
    if named != Some("merge") {
        bench.quantize(&option(arguments, "--types").unwrap_or_else(|| TYPES.to_string()))?;
    }
    Ok(())
}

struct Bench {
    folder: PathBuf,
    program: PathBuf,
    rounds: usize,
    threads: String,
}

impl Bench {
    fn merge(&self) -> Result<()> {
        let recipe = |name: &str, text: String| -> Result<PathBuf> {
            let path = self.folder.join(format!("{name}.yaml"));
            std::fs::write(&path, text)?;
            Ok(path)
        };
        let place = |name: &str| self.place(name).display().to_string();
        let (base, a, b) = (place("base"), place("a"), place("b"));
        let model = |place: &str, own: &str| format!("  - {{model: {place}, parameters: {{{own}}}}}\n");
        let linear = format!(
            "merge_method: linear\nmodels:\n{}{}",
            model(&a, "weight: 0.6"),
            model(&b, "weight: 0.4")
        );
        let own = "weight: 0.5, density: 0.4";
        let ties =
            format!("merge_method: ties\nbase_model: {base}\nmodels:\n{}{}", model(&a, own), model(&b, own));
        let recipes = [
            ("linear", recipe("linear", linear)?, vec!["a", "b"]),
            ("ties", recipe("ties", ties)?, vec!["base", "a", "b"]),
        ];
        for (name, recipe, inputs) in recipes {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for round in 1..=self.rounds {
                let mut copy = Command::new("sh");
                let sources: Vec<String> = inputs.iter().map(|input| place(input)).collect();
                let target = self.clean("copied")?;
                std::fs::create_dir(&target)?;
                let text = format!("cp -r {} {} && sync -f {1}", sources.join(" "), target.display());
                theirs.push(self.timed(copy.args(["-c", &text]))?);
                self.clean("copied")?;
                let mut merge = Command::new(&self.program);
                merge.arg("merge").arg(&recipe).arg(self.clean("merged")?);
                ours.push(self.timed(merge.args(["--threads", &self.threads, "--json"]))?);
                self.clean("merged")?;
                self.say_round(&format!("merge {name}"), round, &ours, "cp", &theirs);
            }
            let bytes: u64 =
                inputs.iter().map(|input| folder_bytes(&self.place(input))).sum::<Result<u64>>()?;
            let written = folder_bytes(&self.place("a"))?;
            // cp writes as much as it reads, a merge less.
            let moved = (bytes + written) as f64 / (2 * bytes) as f64;
            self.conclude(&format!("merge-{name}"), bytes, moved, ours, ("cp", theirs))?;
        }
        Ok(())
    }

    fn quantize(&self, types: &str) -> Result<()> {
        let source = billion::gguf(&self.program, "F16")?;
        let peer = crate::llama_cpp::build()?.programs().join("llama-quantize");
        let bytes = std::fs::metadata(&source)?.len();
        for kind in types.split(',') {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for round in 1..=self.rounds {
                let target = self.clean("theirs.gguf")?;
                let mut command = Command::new("sh");
                let line = r#""$0" "$1" "$2" "$3" "$4" && sync -f "$2""#;
                command.args(["-c", line]).arg(&peer).args([&source, &target]).args([kind, &self.threads]);
                theirs.push(self.timed(&mut command)?);
                self.clean("theirs.gguf")?;
                let mut command = Command::new(&self.program);
                command.arg("quantize").arg(&source).arg(self.clean("ours.gguf")?).args(["--to", kind]);
                ours.push(self.timed(command.args(["--threads", &self.threads, "--json"]))?);
                self.clean("ours.gguf")?;
                self.say_round(&format!("quantize {kind}"), round, &ours, "llama-quantize", &theirs);
            }
            self.conclude(&format!("quantize-{kind}"), bytes, 1.0, ours, ("llama-quantize", theirs))?;
        }
        Ok(())
    }

    fn say_round(&self, what: &str, round: usize, ours: &[Value], peer: &str, theirs: &[Value]) {
        let seconds = |runs: &[Value]| runs[round - 1]["seconds"].as_f64().unwrap_or(f64::NAN);
        let (ours, theirs) = (seconds(ours), seconds(theirs));
        say(&format!("{what}, round {round}: luthier {ours:.2} s, {peer} {theirs:.2} s"));
    }

    /// Medians, and the file with the figures. `bytes` are those of the inputs; `moved` is how many bytes we read and write
    /// for each that the peer does.
    fn conclude(
        &self,
        name: &str,
        bytes: u64,
        moved: f64,
        ours: Vec<Value>,
        (peer, theirs): (&str, Vec<Value>),
    ) -> Result<()> {
        let ratio = median(&theirs, "seconds")? / median(&ours, "seconds")?;
        let memory_bytes = median(&ours, "peak_rss_bytes")?;
        let megabytes = memory_bytes / 1e6;
        let by_bytes = ratio * moved;
        say(&format!(
            "{name}: {ratio:.2} x the speed of {peer} by input, {by_bytes:.2} x by bytes read and written, peak memory {megabytes:.0} MB"
        ));
        // The peer runs in a shell, whose memory says nothing.
        let seconds: Vec<&Value> = theirs.iter().map(|run| &run["seconds"]).collect();
        let summary = json!({
            "input_bytes": bytes, "rounds": self.rounds, "threads": self.threads, "speed_ratio": ratio, "speed_ratio_by_bytes_moved": by_bytes,
            "peak_rss_bytes": memory_bytes, "luthier": ours, peer: seconds,
        });
        write_run(name, &summary)
    }

    /// Runs a command on a disk that has nothing left to write.
    fn timed(&self, command: &mut Command) -> Result<Value> {
        succeed(&mut Command::new("sync"))?;
        let start = Instant::now();
        let spawned = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = spawned.with_context(|| format!("cannot start {command:?}"))?;
        let mut peak_bytes = 0;
        let status = loop {
            peak_bytes = peak_rss_bytes(child.id()).unwrap_or(peak_bytes);
            if let Some(status) = child.try_wait()? {
                break status;
            }
            std::thread::sleep(Duration::from_millis(4));
        };
        let seconds = start.elapsed().as_secs_f64();
        ensure!(status.success(), "{command:?} ended with {status}");
        Ok(json!({"seconds": seconds, "peak_rss_bytes": peak_bytes}))
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.join(format!("surgery-{name}"))
    }

    /// A place for an output, which is removed where it exists.
    fn clean(&self, name: &str) -> Result<PathBuf> {
        let path = self.place(name);
        if path.is_dir() {
            std::fs::remove_dir_all(&path)?;
        } else if path.exists() {
            std::fs::remove_file(&path)?;
        }
        Ok(path)
    }
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

/// The most memory that a running process has held; none once it has ended.
fn peak_rss_bytes(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
