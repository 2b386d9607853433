//! `luthier embed`: texts as vectors.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use luthier_checkpoint::safetensors::SafetensorsWriter;
use luthier_checkpoint::sentence::{Dense, Pooling, SentenceModules};
use luthier_checkpoint::{Dtype, Output, TensorInfo, TensorSink};
use luthier_kernels::blocks::BlockType;
use luthier_measure::metrics::embeddings::{Embeddings, embeddings};
use luthier_text::Tokenizer;
use serde::Deserialize;
use serde_json::json;

use super::Act;
use crate::bounded::AtLeast;
use crate::places::{self, Loaded};
use crate::session::{Report, Session};

const POOLINGS: [&str; 5] = ["mean", "cls", "max", "last", "mean-sqrt"];

/// Writes the tensor `embeddings` (f32, [texts, width]) of a file that holds one text a line. An existing output is
/// overwritten.
///
/// Each text is read whole, with the tokens that the tokenizer puts around it, and the states of its tokens are pooled into
/// one: the final states of an encoder (that of an encoder-decoder too) or of a decoder-only model. Where sentence-transformers'
/// files stand beside the model (modules.json, 1_Pooling/config.json, sentence_bert_config.json) they say how, and options
/// override them; without them it is the mean over all tokens, not normalized. Linear steps behind the pooling (2_Dense) are
/// taken. Longer texts lose their end, but not the
/// tokens around it. An empty line is an empty text: it has the tokens around a text alone, and is refused where there are
/// none.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Embed {
    /// The model
    model: String,
    /// The texts, UTF-8, one a line
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How states become one: mean, cls, max, last or mean-sqrt [default: what the model's modules say, else mean]
    #[arg(long, value_name = "WAY", value_parser = POOLINGS)]
    pooling: Option<String>,
    /// Divide each vector by its length
    #[arg(long, conflicts_with = "no_normalize")]
    #[serde(default)]
    normalize: bool,
    /// Leave vectors as they are, also where the model's modules normalize them
    #[arg(long)]
    #[serde(default)]
    no_normalize: bool,
    /// Tokens of a text at most [default: what the model's modules say, else its context]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max_tokens: Option<AtLeast<1>>,
}

/// How texts are embedded.
struct Way {
    pooling: Pooling,
    dense: Vec<Dense>,
    normalizes: bool,
    max_tokens: Option<usize>,
    lowercases: bool,
}

impl Act for Embed {
    const NAME: &'static str = "embed";
    const ABOUT: &'static str = "Write the embeddings of texts";

    fn check(&self) -> Result<(), String> {
        if self.normalize && self.no_normalize {
            return Err("embed takes one of --normalize and --no-normalize".to_string());
        }
        match &self.pooling {
            Some(name) if Pooling::from_name(name).is_none() => {
                Err(format!("pooling: wanted one of {}, came {name}", POOLINGS.join(", ")))
            }
            _ => Ok(()),
        }
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let loaded = places::load(&self.model)?;
        let way = self.way(&loaded)?;
        let tokenizer = loaded.tokenizer()?;
        let name = self.text.display().to_string();
        let text = std::fs::read(&self.text).with_context(|| {
            format!("--text {name}: wanted the name of a file that holds one text a line")
        })?;
        let text = String::from_utf8(text).with_context(|| format!("--text {name}: wanted UTF-8"))?;
        let start = Instant::now();
        let mut texts = Vec::new();
        let mut n_cut = 0;
        for (at, line) in text.lines().enumerate() {
            let (ids, cut) =
                way.tokens(&tokenizer, line).with_context(|| format!("{name}, line {}", at + 1))?;
            if ids.is_empty() {
                bail!(
                    "{name}, line {}: has no tokens, and the tokenizer adds none; give each line a text",
                    at + 1
                );
            }
            n_cut += usize::from(cut);
            texts.push(ids);
        }
        if texts.is_empty() {
            bail!("{name}: is empty; wanted one text a line");
        }
        if n_cut > 0 {
            let most = way.max_tokens.unwrap_or_default();
            session.note(&format!(
                "{n_cut} of {} texts are longer than {most} tokens and lose their end",
                texts.len()
            ));
        }
        let result = embeddings(loaded.model.as_ref(), &texts, way.pooling, &way.dense, way.normalizes)?;
        let seconds = start.elapsed().as_secs_f64();
        write(&self.out, &loaded, texts.len(), &result)?;
        let tokens: usize = texts.iter().map(Vec::len).sum();
        let json = json!({
            "out": self.out, "texts": texts.len(), "tokens": tokens, "width": result.width, "seconds": seconds,
            "truncated": n_cut, "pooling": way.pooling.name(), "normalized": way.normalizes,
        });
        let text = format!(
            "embeddings [{}, {}] of {tokens} tokens in {} ({}{}, {seconds:.2} s)",
            texts.len(),
            result.width,
            self.out.display(),
            way.pooling.name(),
            if way.normalizes { ", normalized" } else { "" }
        );
        Ok(Report { json, text })
    }
}

impl Embed {
    fn way(&self, loaded: &Loaded) -> anyhow::Result<Way> {
        let modules = SentenceModules::read(&loaded.checkpoint.side_files)?;
        let asked = self.pooling.as_deref().and_then(Pooling::from_name);
        let said = modules.as_ref().map(|modules| modules.pooling);
        let normalizes = modules.as_ref().is_some_and(|modules| modules.normalizes) || self.normalize;
        let context = loaded.model.context_length();
        let length = match self.max_tokens {
            Some(AtLeast(length)) => Some(length),
            None => modules.as_ref().and_then(|modules| modules.max_tokens),
        };
        if let (Some(AtLeast(length)), Some(context)) = (self.max_tokens, context)
            && length > context
        {
            bail!("max_tokens: wanted at most the model's context of {context} tokens, came {length}");
        }
        Ok(Way {
            pooling: asked.or(said).unwrap_or(Pooling::Mean),
            normalizes: normalizes && !self.no_normalize,
            max_tokens: [length, context].into_iter().flatten().min(),
            lowercases: modules.as_ref().is_some_and(|modules| modules.lowercases),
            dense: modules.map(|modules| modules.dense).unwrap_or_default(),
        })
    }
}

impl Way {
    /// The tokens of a text with those around it, and whether some had to go.
    fn tokens(&self, tokenizer: &Tokenizer, line: &str) -> anyhow::Result<(Vec<u32>, bool)> {
        let mut ids = match self.lowercases {
            true => tokenizer.encode_prompt(&line.to_lowercase())?,
            false => tokenizer.encode_prompt(line)?,
        };
        let Some(most) = self.max_tokens.filter(|most| *most < ids.len()) else { return Ok((ids, false)) };
        let (before, after) = (tokenizer.added_before(), tokenizer.added_after());
        if !ids.ends_with(after) || most < before.len() + after.len() {
            if most < before.len() + after.len() {
                bail!("{most} tokens do not hold the {} around a text", before.len() + after.len());
            }
            ids.truncate(most);
            return Ok((ids, true));
        }
        ids.truncate(most - after.len());
        ids.extend_from_slice(after);
        Ok((ids, true))
    }
}

/// One tensor in a safetensors file, whole or not there.
fn write(out: &std::path::Path, loaded: &Loaded, texts: usize, result: &Embeddings) -> anyhow::Result<()> {
    let info = TensorInfo {
        name: "embeddings".to_string(),
        dtype: Dtype::Weights(BlockType::F32),
        shape: vec![texts, result.width],
    };
    let output = Output::file(out, true, &[&loaded.checkpoint.place])?;
    let mut writer =
        SafetensorsWriter::create_file(output.path(), &[info], &SafetensorsWriter::pt_metadata())?;
    let bytes: Vec<u8> = result.values.iter().flat_map(|value| value.to_le_bytes()).collect();
    writer.write("embeddings", &bytes)?;
    writer.finish()?;
    Ok(output.commit()?)
}
