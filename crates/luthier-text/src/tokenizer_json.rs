//! Checks a tokenizer.json before the tokenizers crate reads it, which trusts merges, character maps and templates.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::base64;
use crate::error::{Result, TextError};
use crate::sentencepiece::charsmap;

const FILE: &str = "tokenizer.json";

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow, default)]
    model: Option<Model<'a>>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    post_processor: Value,
}

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(borrow, default)]
    vocab: Option<Names<'a>>,
    #[serde(borrow, default)]
    merges: Option<Vec<Merge<'a>>>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

#[derive(Deserialize, PartialEq, Eq, Hash)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Names of a vocabulary that is a map; those of a list (unigram) do not matter here.
struct Names<'a>(HashSet<Name<'a>>);

/// "left right" or ["left", "right"].
struct Merge<'a>(Cow<'a, str>, Cow<'a, str>);

/// Refuses merges whose halves or whole are no tokens, character maps that point outside of themselves, and templates
/// with special tokens that they do not define.
pub(crate) fn check(bytes: &[u8]) -> Result<()> {
    let file: File = serde_json::from_slice(bytes).map_err(|error| TextError::broken(FILE, error))?;
    check_charsmaps(&file.normalizer)?;
    check_templates(&file.post_processor)?;
    let Some(model) = file.model else { return Ok(()) };
    let (Some(Names(names)), Some(merges)) = (model.vocab, model.merges) else { return Ok(()) };
    let prefix = model.continuing_subword_prefix.unwrap_or_default();
    for (index, Merge(left, right)) in merges.into_iter().enumerate() {
        // The crate cuts the prefix off by its length, whatever the token begins with.
        let whole = right.get(prefix.len()..).map(|rest| Cow::from(format!("{left}{rest}")));
        let tokens = [Some(left), Some(right), whole];
        for token in tokens {
            let is_known =
                token.as_ref().is_some_and(|token| names.contains(&Name(Cow::from(token.as_ref()))));
            if !is_known {
                let token = token.unwrap_or_default();
                let reason = format!("model.merges: entry {index}: {token:?} is not in model.vocab");
                return Err(TextError::broken(FILE, reason));
            }
        }
    }
    Ok(())
}

/// Looks at the normalizer and at the steps of a sequence.
fn check_charsmaps(normalizer: &Value) -> Result<()> {
    if let Some(map) = normalizer.get("precompiled_charsmap").and_then(Value::as_str) {
        let bytes = base64::decode(map);
        let bytes =
            bytes.ok_or_else(|| TextError::broken(FILE, "normalizer.precompiled_charsmap is not base64"))?;
        charsmap::check(&bytes)?;
    }
    let steps = normalizer.get("normalizers").and_then(Value::as_array);
    steps.into_iter().flatten().try_for_each(check_charsmaps)
}

/// Looks at the post-processor and at the steps of a sequence.
fn check_templates(processor: &Value) -> Result<()> {
    if processor.get("type").and_then(Value::as_str) == Some("TemplateProcessing") {
        let defined = processor.get("special_tokens");
        for key in ["single", "pair"] {
            let pieces = processor.get(key).and_then(Value::as_array).into_iter().flatten();
            let named = pieces.filter_map(|piece| piece.get("SpecialToken")?.get("id")?.as_str());
            for token in named {
                if defined.and_then(|tokens| tokens.get(token)).is_none() {
                    let reason = format!(
                        "post_processor.{key}: {token:?} is not in post_processor.special_tokens; define it there"
                    );
                    return Err(TextError::broken(FILE, reason));
                }
            }
        }
    }
    let steps = processor.get("processors").and_then(Value::as_array);
    steps.into_iter().flatten().try_for_each(check_templates)
}

impl<'de: 'a, 'a> Deserialize<'de> for Names<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct NamesVisitor;

        impl<'de> Visitor<'de> for NamesVisitor {
            type Value = Names<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a vocabulary: a map of tokens to ids, or a list")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Names<'de>, A::Error> {
                let mut names = HashSet::new();
                while let Some((name, _)) = map.next_entry::<Name<'de>, IgnoredAny>()? {
                    names.insert(name);
                }
                Ok(Names(names))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Names<'de>, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Names(HashSet::new()))
            }
        }
        deserializer.deserialize_any(NamesVisitor)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct MergeVisitor;

        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a merge: two tokens in a list, or with a space between")
            }

            fn visit_borrowed_str<E: serde::de::Error>(
                self,
                text: &'de str,
            ) -> std::result::Result<Merge<'de>, E> {
                let (left, right) = text.split_once(' ').ok_or_else(|| E::custom(self.wanted(text)))?;
                Ok(Merge(Cow::Borrowed(left), Cow::Borrowed(right)))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Merge<'de>, E> {
                let (left, right) = text.split_once(' ').ok_or_else(|| E::custom(self.wanted(text)))?;
                Ok(Merge(Cow::Owned(left.to_owned()), Cow::Owned(right.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Merge<'de>, A::Error> {
                let mut next = || list.next_element::<Name<'de>>();
                match (next()?, next()?, next()?) {
                    (Some(left), Some(right), None) => Ok(Merge(left.0, right.0)),
                    _ => Err(serde::de::Error::custom("model.merges: wanted two tokens in each merge")),
                }
            }
        }

        impl MergeVisitor {
            fn wanted(&self, came: &str) -> String {
                format!("model.merges: wanted two tokens with a space between, came {came:?}")
            }
        }
        deserializer.deserialize_any(MergeVisitor)
    }
}
