//! `luthier quantize`: a model in few bits a weight.

use std::path::PathBuf;

use luthier_surgery::quantize::{self, Target};
use serde::Deserialize;

use super::Act;
use crate::places;
use crate::session::{Report, Session};
use luthier_checkpoint::byte_count::Bytes;

/// Rounds a model's weights to few bits. For ggml's types OUT is a GGUF file, with the type for every tensor, and the
/// bytes, that llama-quantize chooses; for nf4, fp4 and int8 a folder as transformers saves it with bitsandbytes. With a
/// size instead of a type, every tensor of the GGUF file gets the ggml type with which all together lose least in a file no
/// larger than that, header included; what every type loses is measured on a sample of rows, which --plan reads too.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Quantize {
    /// The model
    #[arg(value_name = "IN")]
    model: String,
    /// The .gguf file to write; a folder for nf4, fp4 and int8
    out: PathBuf,
    /// To what: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q2_K_S, Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, Q6_K,
    /// TQ1_0, TQ2_0, F16, BF16; nf4, fp4, int8. Q3_K, Q4_K and Q5_K are their _M mixtures
    #[arg(long, value_name = "TYPE")]
    to: Option<String>,
    /// Size of the GGUF file at most, instead of a type: bytes, or 80M, 1.2G (powers of 1000), 512MiB (of 1024)
    #[arg(long, value_name = "BYTES")]
    target_size: Option<Bytes>,
    /// Round the scales of nf4 and fp4 too
    #[arg(long)]
    #[serde(default)]
    double: bool,
    /// Importance of every column, as llama-imatrix writes it
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Round tensors again that are quantised already, which loses more than rounding once
    #[arg(long)]
    #[serde(default)]
    requantize: bool,
    /// Replace an existing output
    #[arg(long)]
    #[serde(default)]
    force: bool,
    /// Say what would be done, from headers alone, and do nothing
    #[arg(long)]
    #[serde(default)]
    plan: bool,
}

impl Act for Quantize {
    const NAME: &'static str = "quantize";
    const ABOUT: &'static str = "Round a model's weights to few bits";

    fn check(&self) -> Result<(), String> {
        self.target().map(drop)
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let target = self.target().map_err(anyhow::Error::msg)?;
        let input = places::input(&self.model)?;
        let options = quantize::Options {
            target,
            imatrix: self.imatrix,
            requantize: self.requantize,
            force: self.force,
        };
        places::check_out(&self.out, self.force, &[&input])?;
        if self.plan {
            return super::plan_report(&quantize::plan(&input, &self.out, &options)?);
        }
        let result =
            quantize::run(&input, &self.out, &options).map_err(|error| places::about(&self.model, error))?;
        for note in &result.notes {
            session.note(note);
        }
        let types: Vec<String> = result.types.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let mut text = format!(
            "{}: {} tensors ({}), {:.1} MB, {:.2} bits a weight",
            self.out.display(),
            result.tensors,
            types.join(", "),
            result.size_bytes as f64 / 1e6,
            result.bits_per_weight
        );
        if let Some(choice) = &result.choice {
            text.push_str(&format!("\n{choice}"));
        }
        let mut json = serde_json::to_value(&result)?;
        json["out"] = serde_json::json!(self.out);
        Ok(Report { json, text })
    }
}

impl Quantize {
    fn target(&self) -> Result<Target, String> {
        match (&self.to, self.target_size) {
            (Some(to), None) => Target::parse(to, self.double).map_err(|problem| problem.to_string()),
            (None, Some(_)) if self.double => {
                Err("--double: ggml's types, of which --target-size chooses, have no such form".to_string())
            }
            (None, Some(Bytes(size_bytes))) => Ok(Target::Size(size_bytes)),
            (Some(_), Some(_)) => {
                Err("--to and --target-size: one of them says the types; give one".to_string())
            }
            (None, None) => Err("wanted --to TYPE or --target-size BYTES".to_string()),
        }
    }
}
