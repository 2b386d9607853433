//! `cargo xtask bench surgery`: merge beside `cp` of its inputs, quantize beside llama-quantize; the peers' outputs are synced
//! to the disk too, as ours are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use luthier_checkpoint::safetensors::SafetensorsWriter;
use luthier_checkpoint::{Dtype, TensorInfo, TensorSink};
use serde_json::{Value, json};

use super::{median, number, option, say, write_run};
use crate::python_env::succeed;

pub(super) const HELP: &str = "bench surgery [merge|quantize [--types Q8_0,Q4_0]] [--rounds 5] [--threads 2]
  Random Llamas of 978 million parameters, bf16 (a base and two fine-tunes of 2.0 GB each in target/bench). llama.cpp is
  built where it is missing, or its programs are in the folder that LUTHIER_LLAMA_CPP names. Needs 16 GB of disk.";

const HIDDEN: usize = 2048;
const FFN: usize = 8192;
const KV: usize = 512;
const LAYERS: usize = 15;
const VOCAB: usize = 32_000;
/// So that every checkpoint has several shards.
const SHARD_BYTES: usize = 600_000_000;

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
        bench.make(place, seed)?;
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
        let source = self.folder.join("surgery-f16.gguf");
        if !source.exists() {
            let mut convert = Command::new(&self.program);
            convert.arg("convert").arg(self.place("a")).arg(&source).args(["--dtype", "f16"]);
            succeed(convert.stdout(Stdio::null()))?;
        }
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

    /// A model of random weights; those of seeds above zero are fine-tunes of that of seed zero.
    fn make(&self, name: &str, seed: u64) -> Result<()> {
        let folder = self.place(name);
        if folder.join("config.json").exists() {
            return Ok(());
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let infos = infos();
        let metadata = SafetensorsWriter::pt_metadata();
        let mut writer = SafetensorsWriter::create(&folder, &infos, &metadata, Some(SHARD_BYTES))?;
        for (number, info) in infos.iter().enumerate() {
            let mut base = Noise(number as u64 + 1);
            let mut own = Noise(seed * 1000 + number as u64 + 1);
            let share = if seed == 0 { 0.0 } else { 0.1 };
            let value = |_| {
                let value = 0.02 * (base.next() + share * own.next());
                ((value.to_bits() >> 16) as u16).to_le_bytes()
            };
            let len: usize = info.shape.iter().product();
            let bytes: Vec<u8> = (0..len).flat_map(value).collect();
            writer.write(&info.name, &bytes)?;
        }
        writer.finish()?;
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
            "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HIDDEN / 64,
            "num_key_value_heads": KV / 64, "head_dim": 64, "vocab_size": VOCAB, "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        });
        std::fs::write(folder.join("config.json"), format!("{config:#}\n"))?;
        Ok(())
    }
}

fn infos() -> Vec<TensorInfo> {
    let mut infos = Vec::new();
    let mut add = |name: String, shape: Vec<usize>| {
        let dtype = Dtype::BF16;
        infos.push(TensorInfo { name, dtype, shape });
    };
    add("model.embed_tokens.weight".to_string(), vec![VOCAB, HIDDEN]);
    for layer in 0..LAYERS {
        for (part, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KV, HIDDEN]),
            ("self_attn.v_proj", vec![KV, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![FFN, HIDDEN]),
            ("mlp.up_proj", vec![FFN, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FFN]),
        ] {
            add(format!("model.layers.{layer}.{part}.weight"), shape);
        }
    }
    add("model.norm.weight".to_string(), vec![HIDDEN]);
    infos
}

/// Numbers around zero that look normal: sums of four bytes of an xorshift generator.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        let sum: u32 = mixed.to_le_bytes()[4..].iter().map(|byte| u32::from(*byte)).sum();
        (sum as f32 - 510.0) / 147.0
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
