//! `luthier logits`: the logits of every position of a text, as a file.

use std::path::{Path, PathBuf};

use anyhow::bail;
use luthier_checkpoint::safetensors::SafetensorsWriter;
use luthier_checkpoint::{Dtype, Output, TensorInfo, TensorSink};
use luthier_kernels::blocks::BlockType;
use luthier_measure::metrics::logits::logits;
use serde::Deserialize;
use serde_json::json;

use super::Act;
use crate::places;
use crate::session::{Report, Session};
use crate::tokens::TokenIds;

/// Writes the tensor `logits` (f32, [tokens, vocabulary]) of a text or of token ids. An existing file is overwritten.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Logits {
    /// The model
    model: String,
    /// The text
    #[arg(long, conflicts_with = "tokens", allow_hyphen_values = true)]
    text: Option<String>,
    /// Token ids, used exactly as given: 1,2,3
    #[arg(long, value_name = "IDS")]
    tokens: Option<TokenIds>,
    /// The decoder's complete input, for an encoder-decoder; by default its start token
    #[arg(long, value_name = "IDS")]
    decoder_tokens: Option<TokenIds>,
    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Act for Logits {
    const NAME: &'static str = "logits";
    const ABOUT: &'static str = "Write the logits of every position of a text";

    fn check(&self) -> Result<(), String> {
        match self.text.is_some() == self.tokens.is_some() {
            true => Err("logits takes one of --text TEXT and --tokens IDS".to_string()),
            false => Ok(()),
        }
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        if let Some(text) = self.text.as_deref().filter(|text| Path::new(text).is_file()) {
            session.note(&format!("--text {text} was taken as the text itself, not as the name of the file"));
        }
        let loaded = places::load(&self.model)?;
        let ids = match (&self.text, &self.tokens) {
            (Some(text), None) => loaded.tokenizer()?.encode_prompt(text)?,
            (None, Some(ids)) => ids.0.clone(),
            _ => bail!("logits takes one of --text TEXT and --tokens IDS"),
        };
        let decoder_ids = self.decoder_tokens.as_ref().map(|ids| ids.0.as_slice());
        let result = logits(loaded.model.as_ref(), &ids, decoder_ids)?;
        let shape = [result.tokens, result.vocabulary];
        write(&self.out, &loaded.checkpoint.place, &shape, &result.values)?;
        let json = json!({ "out": self.out, "tokens": shape[0], "vocabulary": shape[1], "token_ids": ids });
        let text = format!("logits [{}, {}] in {}", shape[0], shape[1], self.out.display());
        Ok(Report { json, text })
    }
}

/// One tensor in a safetensors file, whole or not there.
fn write(out: &Path, model: &Path, shape: &[usize], values: &[f32]) -> anyhow::Result<()> {
    let info = TensorInfo {
        name: "logits".to_string(),
        dtype: Dtype::Weights(BlockType::F32),
        shape: shape.to_vec(),
    };
    let output = Output::file(out, true, &[model])?;
    let mut writer =
        SafetensorsWriter::create_file(output.path(), &[info], &SafetensorsWriter::pt_metadata())?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    writer.write("logits", &bytes)?;
    writer.finish()?;
    Ok(output.commit()?)
}
