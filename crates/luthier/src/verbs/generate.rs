//! `luthier generate`: continues a prompt.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::bail;
use luthier_arch::{Model, Precision};
use luthier_generate::generate::standard_cache;
use luthier_generate::speculate::DRAFT_TOKENS;
use luthier_generate::{
    Aids, CacheType, DraftModel, Drafter, FinishReason, GenerateOptions, Generation, Lookup,
    check_keeps_prompts, generate_with,
};
use serde::Deserialize;
use serde_json::json;

use super::Act;
use crate::bounded::{AtLeast, NotNegative, Positive, Share, Typed};
use crate::kept_prompt::KeptPrompt;
use crate::places::{self, Loaded};
use crate::session::{Report, Session};
use crate::tokens::TokenIds;

/// Continues a prompt, taken literally: no template, no escapes, no trimming; special tokens are recognised, and a
/// start token is added only where the tokenizer says so; an empty prompt is that token alone. Greedy unless a temperature is given. An encoder-decoder
/// reads the prompt in its encoder.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Generate {
    /// The model
    model: String,
    /// Text to continue
    #[arg(long, conflicts_with = "tokens", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Token ids to continue, used exactly as given: 1,2,3 (works without a tokenizer)
    #[arg(long, value_name = "IDS")]
    tokens: Option<TokenIds>,
    /// The decoder's complete input, for an encoder-decoder; by default its start token
    #[arg(long, value_name = "IDS")]
    decoder_tokens: Option<TokenIds>,
    /// Stop after this many new tokens [default: 128]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max_new_tokens: Option<AtLeast<0>>,
    /// What logits are divided by before sampling; 0 is greedy [default: 0]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<NotNegative>,
    /// Sample among the K most likely tokens; 0 is off [default: 0]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<AtLeast<0>>,
    /// Sample among the fewest tokens whose probabilities reach this sum; 1 is off [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<Share>,
    /// Sample among tokens at least this fraction as likely as the likeliest; 0 is off [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<Share>,
    /// Makes tokens that were read or written less likely; 1 is off [default: 1]
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    repetition_penalty: Option<Positive>,
    /// Seed of sampling [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    #[serde(default)]
    stop: Vec<String>,
    /// Let a smaller model of the same vocabulary draft tokens, which the model confirms: the same text, sooner
    #[arg(long, value_name = "MODEL")]
    draft: Option<String>,
    /// Draft what followed the last N tokens (or fewer) where they stood before
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "draft")]
    lookup: Option<AtLeast<1>>,
    /// Tokens that are drafted at a time [default: 5]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    draft_tokens: Option<AtLeast<1>>,
    /// What keys and values are rounded to: f32, f16, or q8, whole numbers with a scale for each 64 of them [default: f16, or f32 where no weights are stored in less]
    #[arg(long, value_name = "TYPE")]
    kv_cache: Option<Typed<CacheType>>,
    /// Keep what was computed of the prompt in FILE, and take from there what a prompt before began with: the same text, sooner
    #[arg(long, value_name = "FILE")]
    prompt_cache: Option<PathBuf>,
    /// Go on past an end token
    #[arg(long)]
    #[serde(default)]
    ignore_eos: bool,
}

impl Act for Generate {
    const NAME: &'static str = "generate";
    const ABOUT: &'static str = "Continue a prompt";

    fn check(&self) -> Result<(), String> {
        if self.prompt.is_some() == self.tokens.is_some() {
            return Err("generate takes one of --prompt TEXT and --tokens IDS".to_string());
        }
        if self.draft.is_some() && self.lookup.is_some() {
            return Err("draft and lookup: wanted one of them".to_string());
        }
        if self.draft_tokens.is_some() && self.draft.is_none() && self.lookup.is_none() {
            return Err("draft_tokens belongs to draft or lookup".to_string());
        }
        if self.stop.iter().any(String::is_empty) {
            return Err("stop: wanted a text to end before, came an empty one".to_string());
        }
        Ok(())
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let loaded = places::load_packed(&self.model, Precision::Fast, true)?;
        let mut kept = self.kept_prompt(&loaded, session)?;
        let tokenizer = match self.prompt.is_some() || !self.stop.is_empty() {
            true => Some(loaded.tokenizer()?),
            false => loaded.tokenizer_if_any()?,
        };
        let prompt_ids = match (&self.prompt, &self.tokens, &tokenizer) {
            (Some(prompt), None, Some(tokenizer)) => prompt_tokens(&loaded, tokenizer, prompt)?,
            (None, Some(ids), _) => ids.0.clone(),
            _ => bail!("generate takes one of --prompt TEXT and --tokens IDS"),
        };
        // What begins a text is a right prompt, but small models have seen few texts begin: the built-in one repeats a letter.
        if self.prompt.as_deref() == Some("") && !loaded.model.is_encoder_decoder() {
            session.note(
                "the prompt is empty: the model goes on from its start token alone; a few words say more",
            );
        }
        let options = self.options(loaded.end_ids(tokenizer.as_ref()));
        let decoder_ids = self.decoder_tokens.as_ref().map(|ids| ids.0.as_slice());
        let model = loaded.model.as_ref();
        let drafting = self.drafting(&loaded, tokenizer.as_ref())?;
        let mut drafter = self.drafter(drafting.as_ref(), model)?;
        let count = self.draft_tokens.map_or(DRAFT_TOKENS, |n| n.0);
        let aids = Aids {
            drafts: match &mut drafter {
                Some(drafter) => Some((drafter.as_mut(), count)),
                None => None,
            },
            memory: kept.as_mut().map(|kept| &mut kept.memory),
        };
        let (generation, text) = match &tokenizer {
            Some(tokenizer) => {
                let (generation, text) = luthier_generate::generate_text(
                    model,
                    tokenizer,
                    &prompt_ids,
                    decoder_ids,
                    &options,
                    aids,
                    &mut |piece| show(session, piece),
                )?;
                (generation, Some(text))
            }
            None => {
                let mut go_on = |_| ControlFlow::Continue(());
                let generation = generate_with(model, &prompt_ids, decoder_ids, &options, aids, &mut go_on)?;
                (generation, None)
            }
        };
        let first_ms = generation.time_to_first_token.map(|time| time.as_secs_f64() * 1e3);
        let mut json = json!({
            "text": text,
            "prompt_token_ids": prompt_ids,
            "token_ids": generation.token_ids,
            "finish_reason": generation.finish_reason.as_str(),
            "decode_tokens_per_s": generation.decode_tokens_per_s(),
            "time_to_first_token_ms": first_ms,
        });
        if drafter.is_some() {
            json["drafted_tokens"] = json!(generation.drafted_tokens);
            json["accepted_tokens"] = json!(generation.accepted_tokens);
        }
        if let Some(kept) = &kept {
            json["reused_prompt_tokens"] = json!(kept.memory.reused_tokens);
            kept.keep()?;
        }
        self.note_full_context(&loaded, &generation, session);
        if text.as_deref() == Some("") && generation.finish_reason != FinishReason::Length {
            session.note("the model ended its text at once; --ignore-eos goes on past the end");
        }
        let ids: Vec<String> = generation.token_ids.iter().map(u32::to_string).collect();
        let text = if text.is_some() { String::new() } else { ids.join(",") };
        Ok(Report { json, text })
    }
}

impl Generate {
    fn options(&self, eos_token_ids: Vec<u32>) -> GenerateOptions {
        let standard = GenerateOptions::default();
        GenerateOptions {
            max_new_tokens: self.max_new_tokens.map_or(standard.max_new_tokens, |n| n.0),
            temperature: self.temperature.map_or(standard.temperature, |t| t.0),
            top_k: self.top_k.map_or(standard.top_k, |k| k.0),
            top_p: self.top_p.map_or(standard.top_p, |p| p.0),
            min_p: self.min_p.map_or(standard.min_p, |p| p.0),
            repetition_penalty: self.repetition_penalty.map_or(standard.repetition_penalty, |r| r.0),
            seed: self.seed.unwrap_or(standard.seed),
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            eos_token_ids,
            kv_cache: self.kv_cache.as_ref().map(|kind| kind.0),
        }
    }

    /// What is kept of prompts, where a file for it was named.
    fn kept_prompt(&self, loaded: &Loaded, session: &Session) -> anyhow::Result<Option<KeptPrompt>> {
        let Some(path) = &self.prompt_cache else { return Ok(None) };
        let model = loaded.model.as_ref();
        check_keeps_prompts(model)?;
        let kind = self.kv_cache.as_ref().map_or_else(|| standard_cache(model), |kind| kind.0);
        KeptPrompt::open(path, &self.model, kind, session).map(Some)
    }

    /// The model that drafts, whose vocabulary must be the model's.
    fn drafting(
        &self,
        loaded: &Loaded,
        tokenizer: Option<&luthier_text::Tokenizer>,
    ) -> anyhow::Result<Option<Loaded>> {
        let Some(draft) = &self.draft else { return Ok(None) };
        let draft = places::load_packed(draft, Precision::Fast, true)?;
        if let (Some(tokenizer), Some(own)) = (tokenizer, draft.tokenizer_if_any()?) {
            let mut ids = 0..loaded.model.vocab_size() as u32;
            if let Some(id) = ids.find(|id| tokenizer.token(*id) != own.token(*id)) {
                let place = draft.checkpoint.place.display();
                let (wanted, came) = (tokenizer.token(id), own.token(id));
                bail!(
                    "draft {place}: wanted the vocabulary of {}; token {id} is {wanted:?} there and {came:?} here",
                    self.model
                );
            }
        }
        Ok(Some(draft))
    }

    fn drafter<'l>(
        &self,
        draft: Option<&'l Loaded>,
        model: &dyn Model,
    ) -> anyhow::Result<Option<Box<dyn Drafter + 'l>>> {
        Ok(match (draft, self.lookup) {
            (Some(draft), _) => Some(Box::new(DraftModel::new(draft.model.as_ref(), model.vocab_size())?)),
            (None, Some(longest)) => Some(Box::new(Lookup { longest: longest.0 })),
            (None, None) => None,
        })
    }

    /// Says where a continuation ended before its length was reached: the context does not slide.
    fn note_full_context(&self, loaded: &Loaded, generation: &Generation, session: &Session) {
        let wanted = self.options(Vec::new()).max_new_tokens;
        let got = generation.token_ids.len();
        if generation.finish_reason == FinishReason::Length
            && got < wanted
            && let Some(context) = loaded.model.context_length()
        {
            session.note(&format!(
                "ended after {got} of {wanted} new tokens: the model's context of {context} tokens is full"
            ));
        }
    }
}

/// The prompt's ids: literal text, with the tokens that the tokenizer adds. An empty prompt without them is refused.
fn prompt_tokens(
    loaded: &Loaded,
    tokenizer: &luthier_text::Tokenizer,
    prompt: &str,
) -> anyhow::Result<Vec<u32>> {
    let mut ids = tokenizer.encode_prompt(prompt)?;
    // What the tokenizer puts after a text would end a continuation before it begins; an encoder wants it.
    if !loaded.model.is_encoder_decoder() && tokenizer.adds_eos() && ids.ends_with(tokenizer.added_after()) {
        ids.truncate(ids.len() - tokenizer.added_after().len());
    }
    if ids.is_empty() {
        bail!("prompt: it is empty and the tokenizer adds no start token; give at least one character");
    }
    Ok(ids)
}

/// Streams text to a person; a closed pipe ends the generation.
fn show(session: &Session, piece: &str) -> ControlFlow<()> {
    if session.json {
        return ControlFlow::Continue(());
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(piece.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}
