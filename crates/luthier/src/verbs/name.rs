//! `luthier name`: model names in segments, and back.

use anyhow::anyhow;
use luthier_surgery::name::{self, KINDS, Kind};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Act;
use crate::session::{Report, Session};

/// Takes model names into their segments (owner, base, version, size, variant, data, language, method, context, date,
/// quantisation, other), or makes a name of such parts: `luthier name parse Qwen/Qwen2.5-0.5B-Instruct`,
/// `luthier name make base=Qwen2.5 size=0.5B variant=Instruct owner=me`.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Name {
    /// parse or make
    action: Action,
    /// Names to parse; or parts, each KIND=TEXT
    #[arg(required = true, value_name = "NAME|KIND=TEXT")]
    words: Vec<String>,
}

/// What to do with names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    /// Take names into segments
    Parse,
    /// Make a name of parts
    Make,
}

impl Act for Name {
    const NAME: &'static str = "name";
    const ABOUT: &'static str = "Take model names apart, or put them together";

    fn check(&self) -> Result<(), String> {
        match self.action {
            Action::Parse => Ok(()),
            Action::Make => parts(&self.words).and_then(|parts| name::make(&parts)).map(drop),
        }
    }

    fn act(self, _session: &Session) -> anyhow::Result<Report> {
        if self.action == Action::Make {
            let made =
                parts(&self.words).and_then(|parts| name::make(&parts)).map_err(|what| anyhow!(what))?;
            return Ok(Report { json: json!({ "name": made }), text: made });
        }
        let (mut all, mut lines) = (Vec::new(), Vec::new());
        for word in &self.words {
            let segments = name::parse(word);
            let words: Vec<String> =
                segments.iter().map(|segment| format!("{}={}", key(segment.kind), segment.text)).collect();
            lines.push(format!("{word}: {}", words.join(" ")));
            let mut fields: Map<String, Value> = Map::new();
            for segment in &segments {
                let field = fields.entry(key(segment.kind)).or_insert_with(|| json!([]));
                field.as_array_mut().expect("made as a list").push(json!(segment.text));
            }
            all.push(json!({ "name": word, "fields": fields, "segments": segments }));
        }
        Ok(Report { json: json!({ "names": all }), text: lines.join("\n") })
    }
}

fn key(kind: Kind) -> String {
    format!("{kind:?}").to_lowercase()
}

fn parts(words: &[String]) -> Result<Vec<(Kind, String)>, String> {
    let part = |word: &String| {
        let known = || KINDS.map(key).join(", ");
        let (kind, text) = word
            .split_once('=')
            .ok_or_else(|| format!("wanted KIND=TEXT, came {word}; kinds: {}", known()))?;
        let kind = KINDS
            .into_iter()
            .find(|own| key(*own) == kind)
            .ok_or_else(|| format!("no kind is called {kind}; wanted one of {}", known()))?;
        Ok((kind, text.to_string()))
    };
    words.iter().map(part).collect()
}
