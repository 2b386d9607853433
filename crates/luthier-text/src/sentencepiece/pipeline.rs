//! The pipelines that stand for SentencePiece models: BPE with byte fallback, and unigram.
//!
//! As transformers' converters build them: Llama's and Gemma's BPE, T5's unigram.

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip as StripDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::normalizers::precompiled::Precompiled;
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::strip::Strip;
use tokenizers::normalizers::utils::Sequence as NormalizerSequence;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{ModelWrapper, Tokenizer};

use crate::error::{Result, TextError};
use crate::tokenizer::byte_tokens;

/// What SentencePiece writes for a space.
pub(crate) const SPACE: &str = "▁";

/// The merges that give the same pieces as SentencePiece's scores: every way to put a piece together from two
/// others, best score first, longer left halves first (transformers' `generate_merges`).
pub(crate) fn merges_from_scores<'a>(
    vocab: &Vocab,
    pieces: impl Iterator<Item = (&'a str, f32)>,
) -> Vec<(String, String)> {
    let mut merges: Vec<(f32, &str, &str, (u32, u32))> = Vec::new();
    for (piece, score) in pieces {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(left_id), Some(right_id)) = (vocab.get(left), vocab.get(right)) {
                merges.push((score, left, right, (*left_id, *right_id)));
            }
        }
    }
    merges.sort_by(|a, b| {
        let chars =
            |merge: &(f32, &str, &str, (u32, u32))| (merge.1.chars().count(), merge.2.chars().count());
        b.0.total_cmp(&a.0).then_with(|| chars(b).cmp(&chars(a))).then_with(|| a.3.cmp(&b.3))
    });
    merges.into_iter().map(|(_, left, right, _)| (left.to_owned(), right.to_owned())).collect()
}

/// Whether both halves of every merge and the whole are tokens. The reason if not.
pub(crate) fn check_merges(vocab: &Vocab, merges: &[(String, String)]) -> std::result::Result<(), String> {
    let mut whole = String::new();
    for (index, (left, right)) in merges.iter().enumerate() {
        whole.clear();
        whole.push_str(left);
        whole.push_str(right);
        if let Some(missing) =
            [left, right, &whole].into_iter().find(|token| !vocab.contains_key(token.as_str()))
        {
            return Err(format!("entry {index} ({left:?} {right:?}): {missing:?} is not a token"));
        }
    }
    Ok(())
}

/// Where a space is put before the text; when decoding it is taken away again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpacePrefix {
    /// Nowhere.
    None,
    /// At the start, and after each special token ("legacy" in transformers, and what llama.cpp does).
    EveryPart,
    /// At the start only.
    Start,
}

/// BPE over whole texts with spaces written as `▁` and unknown characters as byte tokens, where the vocabulary
/// has all of them.
pub(crate) fn bpe(
    vocab: Vocab,
    merges: Vec<(String, String)>,
    unk: Option<String>,
    prefix: SpacePrefix,
) -> Result<Tokenizer> {
    let byte_fallback = byte_tokens().all(|token| vocab.contains_key(&token));
    let mut builder =
        BPE::builder().vocab_and_merges(vocab, merges).fuse_unk(true).byte_fallback(byte_fallback);
    if let Some(unk) = unk {
        builder = builder.unk_token(unk);
    }
    let mut pipeline = Tokenizer::new(ModelWrapper::BPE(builder.build().map_err(broken)?));
    let space: NormalizerWrapper = Replace::new(" ", SPACE).map_err(broken)?.into();
    let normalizer = match prefix {
        SpacePrefix::None => Some(space),
        SpacePrefix::EveryPart => {
            let steps = vec![Prepend::new(SPACE.to_owned()).into(), space];
            Some(NormalizerWrapper::Sequence(NormalizerSequence::new(steps)))
        }
        SpacePrefix::Start => {
            pipeline.with_pre_tokenizer(Some(Metaspace::new('▁', PrependScheme::First, false)));
            None
        }
    };
    pipeline.with_normalizer(normalizer).map_err(broken)?;
    let mut steps: Vec<DecoderWrapper> = vec![
        DecoderWrapper::Replace(Replace::new(SPACE, " ").map_err(broken)?),
        DecoderWrapper::ByteFallback(ByteFallback::default()),
        DecoderWrapper::Fuse(Fuse::default()),
    ];
    if prefix != SpacePrefix::None {
        steps.push(DecoderWrapper::Strip(StripDecoder::new(' ', 1, 0)));
    }
    pipeline.with_decoder(Some(DecoderWrapper::Sequence(DecoderSequence::new(steps))));
    Ok(pipeline)
}

/// Unigram with the model's own character map. `space_prefix`: a space is put before the text;
/// `joins_spaces`: runs of spaces become one, and those at the end go.
pub(crate) fn unigram(
    model: Unigram,
    charsmap: &[u8],
    space_prefix: bool,
    joins_spaces: bool,
) -> Result<Tokenizer> {
    let mut pipeline = Tokenizer::new(ModelWrapper::Unigram(model));
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if !charsmap.is_empty() {
        super::charsmap::check(charsmap)?;
        let map = Precompiled::from(charsmap);
        steps.push(map.map_err(|error| TextError::broken("precompiled_charsmap", error))?.into());
    }
    if joins_spaces {
        steps.push(Strip::new(false, true).into());
        steps.push(Replace::new(ReplacePattern::Regex(" {2,}".to_owned()), SPACE).map_err(broken)?.into());
    }
    if !steps.is_empty() {
        pipeline
            .with_normalizer(Some(NormalizerWrapper::Sequence(NormalizerSequence::new(steps))))
            .map_err(broken)?;
    }
    let scheme = if space_prefix { PrependScheme::Always } else { PrependScheme::Never };
    pipeline.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, true)));
    pipeline.with_decoder(Some(DecoderWrapper::Metaspace(Metaspace::new('▁', scheme, true))));
    Ok(pipeline)
}

/// Puts a start and an end token around every text.
pub(crate) fn put_around(
    pipeline: &mut Tokenizer,
    before: Option<(String, u32)>,
    after: Option<(String, u32)>,
) -> Result<()> {
    if before.is_none() && after.is_none() {
        return Ok(());
    }
    // Written as JSON because the builder's own notation would trip over tokens with a colon or a space.
    let special = |token: &Option<(String, u32)>, side: u32| {
        token.as_ref().map(|(name, _)| serde_json::json!({"SpecialToken": {"id": name, "type_id": side}}))
    };
    let text = |name: &str, side: u32| Some(serde_json::json!({"Sequence": {"id": name, "type_id": side}}));
    let single = [special(&before, 0), text("A", 0), special(&after, 0)];
    let second = [special(&before, 1), text("B", 1), special(&after, 1)];
    let tokens: serde_json::Map<String, serde_json::Value> = [&before, &after]
        .into_iter()
        .flatten()
        .map(|(name, id)| (name.clone(), serde_json::json!({"id": name, "ids": [id], "tokens": [name]})))
        .collect();
    let template = serde_json::json!({
        "single": single.iter().flatten().collect::<Vec<_>>(),
        "pair": single.iter().chain(&second).flatten().collect::<Vec<_>>(),
        "special_tokens": tokens,
    });
    let template: TemplateProcessing = serde_json::from_value(template).map_err(broken)?;
    pipeline.with_post_processor(Some(PostProcessorWrapper::Template(template)));
    Ok(())
}

fn broken(error: impl std::fmt::Display) -> TextError {
    TextError::broken("tokenizer", error)
}
