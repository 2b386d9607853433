//! How a model's states become the embedding of a text, as sentence-transformers writes it beside a model: `modules.json`, the
//! pooling's own config, `sentence_bert_config.json`, and linear steps behind the pooling.

mod dense;

use serde_json::{Map, Value};

use crate::{Error, Result, SideFile};

pub use dense::{Activation, Dense};

/// Lists the modules; without it a folder is no sentence-transformers model.
pub const MODULES: &str = "modules.json";
const LENGTH_FILE: &str = "sentence_bert_config.json";

/// How the states of a text's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the first token.
    First,
    /// The largest value of each place.
    Max,
    /// That of the last token.
    Last,
    /// Their sum over the root of their number.
    MeanOfRoot,
}

/// All ways, with the names that people type, the keys and the modes of sentence-transformers' configs, and llama.cpp's
/// numbers.
const POOLINGS: [(Pooling, &str, &str, &str, Option<u32>); 5] = [
    (Pooling::Mean, "mean", "pooling_mode_mean_tokens", "mean", Some(1)),
    (Pooling::First, "cls", "pooling_mode_cls_token", "cls", Some(2)),
    (Pooling::Max, "max", "pooling_mode_max_tokens", "max", None),
    (Pooling::Last, "last", "pooling_mode_lasttoken", "lasttoken", Some(3)),
    (Pooling::MeanOfRoot, "mean-sqrt", "pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", None),
];

impl Pooling {
    /// Of the name that people type.
    pub fn from_name(name: &str) -> Option<Pooling> {
        POOLINGS.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// As people type it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// llama.cpp's number for `pooling_type`; none where it has none.
    pub fn gguf_type(self) -> Option<u32> {
        self.row().4
    }

    fn row(self) -> &'static (Pooling, &'static str, &'static str, &'static str, Option<u32>) {
        POOLINGS.iter().find(|row| row.0 == self).expect("every way has its line")
    }
}

/// What stands beside a model for embedding texts.
#[derive(Clone, Debug, PartialEq)]
pub struct SentenceModules {
    /// How states become one; the mean where no module says it.
    pub pooling: Pooling,
    /// What is done to that, one after another.
    pub dense: Vec<Dense>,
    /// Whether the result is divided by its length.
    pub normalizes: bool,
    /// Tokens of a text at most, special ones included.
    pub max_tokens: Option<usize>,
    /// Whether texts are put into lower case before anything else.
    pub lowercases: bool,
}

impl SentenceModules {
    /// Of a model's small files; none where there is no modules.json. Refuses modules of other kinds and ways of pooling that
    /// are not known, naming the file.
    pub fn read(files: &[SideFile]) -> Result<Option<SentenceModules>> {
        let Some(list) = parsed(files, MODULES)? else { return Ok(None) };
        let wrong = |what: String| broken(MODULES, what);
        let list = list.as_array().ok_or_else(|| wrong("wanted a list of modules".to_string()))?;
        let (mut pooling, mut dense, mut normalizes) = (None, Vec::new(), false);
        for (at, module) in list.iter().enumerate() {
            let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
            let kind = text("type").rsplit('.').next().unwrap_or_default();
            match kind {
                "Transformer" if at == 0 => {}
                "Pooling" if pooling.is_none() && !normalizes => {
                    pooling = Some(read_pooling(files, &format!("{}/config.json", text("path")))?);
                }
                "Dense" if pooling.is_some() && !normalizes => {
                    let next = Dense::read(files, text("path"))?;
                    if let Some(before) =
                        dense.last().filter(|before: &&Dense| before.outputs() != next.inputs)
                    {
                        let (gives, reads) = (before.outputs(), next.inputs);
                        return Err(wrong(format!(
                            "module {at} reads {reads} values, the one before gives {gives}"
                        )));
                    }
                    dense.push(next);
                }
                "Normalize" => normalizes = true,
                _ => {
                    let what = format!(
                        "module {at} is {:?}; wanted a Transformer, then Pooling, then Dense, then Normalize, or not all of them",
                        text("type")
                    );
                    return Err(wrong(what));
                }
            }
        }
        let (max_tokens, lowercases) = read_length(files)?;
        Ok(Some(SentenceModules {
            pooling: pooling.unwrap_or(Pooling::Mean),
            dense,
            normalizes,
            max_tokens,
            lowercases,
        }))
    }
}

fn read_pooling(files: &[SideFile], name: &str) -> Result<Pooling> {
    let missing = || broken(name, format!("is missing, but {MODULES} names it"));
    let config = parsed(files, name)?.ok_or_else(missing)?;
    if let Some(mode) = config.get("pooling_mode").and_then(Value::as_str) {
        let known = POOLINGS.iter().find(|row| row.3 == mode).map(|row| row.0);
        return known.ok_or_else(|| {
            broken(name, format!("pooling_mode {mode:?} is not known; wanted one of {}", modes()))
        });
    }
    let empty = Map::new();
    let keys = config.as_object().unwrap_or(&empty);
    let wanted: Vec<&str> = keys
        .iter()
        .filter(|(key, value)| key.starts_with("pooling_mode_") && **value == Value::Bool(true))
        .map(|(key, _)| key.as_str())
        .collect();
    let [key] = wanted[..] else {
        let what =
            format!("wanted one way of pooling that is true, found {}: {}", wanted.len(), wanted.join(", "));
        return Err(broken(name, what));
    };
    let known = POOLINGS.iter().find(|row| row.2 == key).map(|row| row.0);
    known.ok_or_else(|| broken(name, format!("{key} is not known; wanted one of {}", modes())))
}

fn modes() -> String {
    POOLINGS.map(|row| row.3).join(", ")
}

fn read_length(files: &[SideFile]) -> Result<(Option<usize>, bool)> {
    let Some(config) = parsed(files, LENGTH_FILE)? else { return Ok((None, false)) };
    let length = match config.get("max_seq_length") {
        None | Some(Value::Null) => None,
        Some(value) => {
            let length =
                value.as_u64().and_then(|length| usize::try_from(length).ok()).filter(|length| *length > 0);
            let wrong =
                || broken(LENGTH_FILE, format!("max_seq_length: wanted a number of tokens, found {value}"));
            Some(length.ok_or_else(wrong)?)
        }
    };
    Ok((length, config.get("do_lower_case") == Some(&Value::Bool(true))))
}

fn parsed(files: &[SideFile], name: &str) -> Result<Option<Value>> {
    let Some(file) = files.iter().find(|file| file.name == name) else { return Ok(None) };
    serde_json::from_slice(&file.bytes)
        .map(Some)
        .map_err(|problem| broken(name, format!("wanted JSON: {problem}")))
}

fn broken(name: &str, what: impl Into<String>) -> Error {
    Error::format(std::path::Path::new(name), what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(parts: &[(&str, &str)]) -> Vec<SideFile> {
        let file = |(name, text): &(&str, &str)| SideFile {
            name: name.to_string(),
            bytes: text.as_bytes().to_vec(),
        };
        parts.iter().map(file).collect()
    }

    const LIST: &str = r#"[{"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]"#;

    #[test]
    fn modules_say_pooling_length_and_normalisation() {
        let older = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
        let length = r#"{"max_seq_length": 256, "do_lower_case": true}"#;
        let read = SentenceModules::read(&files(&[
            (MODULES, LIST),
            ("1_Pooling/config.json", older),
            (LENGTH_FILE, length),
        ]));
        let wanted = SentenceModules {
            pooling: Pooling::First,
            dense: Vec::new(),
            normalizes: true,
            max_tokens: Some(256),
            lowercases: true,
        };
        assert_eq!(read.unwrap(), Some(wanted));
        for (_, name, _, mode, _) in POOLINGS {
            let newer = format!(r#"{{"pooling_mode": "{mode}"}}"#);
            let read =
                SentenceModules::read(&files(&[(MODULES, LIST), ("1_Pooling/config.json", &newer)])).unwrap();
            assert_eq!(read.map(|read| read.pooling), Pooling::from_name(name));
        }
        assert_eq!(SentenceModules::read(&[]).unwrap(), None);
    }

    #[test]
    fn what_is_not_known_is_refused_by_file() {
        let refused = |parts: &[(&str, &str)]| SentenceModules::read(&files(parts)).unwrap_err().to_string();
        let pooling = "1_Pooling/config.json";
        for (parts, wanted) in [
            (vec![(MODULES, "{")], "modules.json: wanted JSON"),
            (vec![(MODULES, "{}")], "wanted a list of modules"),
            (vec![(MODULES, r#"[{"type": "a.Dense"}]"#)], "module 0 is \"a.Dense\""),
            (vec![(MODULES, LIST)], "1_Pooling/config.json: is missing"),
            (vec![(MODULES, LIST), (pooling, "{}")], "found 0"),
            (
                vec![(MODULES, LIST), (pooling, r#"{"pooling_mode": "best"}"#)],
                "\"best\" is not known; wanted one of mean",
            ),
            (
                vec![
                    (MODULES, LIST),
                    (pooling, r#"{"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true}"#),
                ],
                "found 2: pooling_mode_cls_token, pooling_mode_max_tokens",
            ),
            (
                vec![
                    (MODULES, LIST),
                    (pooling, r#"{"pooling_mode": "max"}"#),
                    (LENGTH_FILE, r#"{"max_seq_length": 0}"#),
                ],
                "max_seq_length: wanted a number of tokens, found 0",
            ),
        ] {
            let error = refused(&parts);
            assert!(error.contains(wanted), "{error}");
        }
    }
}
