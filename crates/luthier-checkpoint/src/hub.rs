//! Models of a Hugging Face hub: `hf:org/name[@rev]` and `hf:org/name/file.gguf[@rev]` become places on this machine.
//!
//! The cache is the one that Hugging Face's own tools keep (`models--org--name/{blobs,refs,snapshots}`), locked as they
//! lock it, so that each finds what the other fetched. A cut transfer is taken up where it stopped, and every file is
//! checked against the hash that the hub states: SHA-256 for large files, git's SHA-1 for small ones.

mod cache;
mod fetch;
mod http;

use std::path::{Path, PathBuf};

use crate::{Error, Result};

pub use fetch::resolve;

/// A model on a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubPlace {
    /// `org/name`.
    pub repo: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// One file of it; otherwise the model folder.
    pub file: Option<String>,
}

impl HubPlace {
    /// Parses a place; `None` when it does not begin with `hf:`.
    pub fn parse(place: &str) -> Option<Result<HubPlace>> {
        let rest = place.strip_prefix("hf:")?;
        let refuse = |what: &str| {
            let what = format!("{what}; wanted hf:org/name[@revision] or hf:org/name/file.gguf[@revision]");
            Err(Error::Hub { repo: rest.to_string(), what })
        };
        let (path, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let parts: Vec<&str> = path.split('/').collect();
        if !revision.split('/').chain(parts.iter().copied()).all(is_plain_name) {
            return Some(refuse("is not a name on a hub"));
        }
        let (repo, file) = match parts.as_slice() {
            [_] | [_, _] => (path.to_string(), None),
            [org, name, file @ ..] => (format!("{org}/{name}"), Some(file.join("/"))),
            [] => return Some(refuse("is empty")),
        };
        if file.as_ref().is_some_and(|file| !file.to_ascii_lowercase().ends_with(".gguf")) {
            return Some(refuse("names a file that is not .gguf"));
        }
        Some(Ok(HubPlace { repo, revision: revision.to_string(), file }))
    }
}

/// One part of a path that can go into a URL and a file name as it is.
fn is_plain_name(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain)
}

/// Where the hub is, where its files go, and who asks.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// The folder that holds `models--org--name`.
    pub cache: PathBuf,
    /// `https://huggingface.co`, without a slash at the end.
    pub endpoint: String,
    /// Sent to the endpoint, and to nobody that it points to.
    pub token: Option<String>,
    /// Open no socket; take what the cache holds.
    pub offline: bool,
}

impl HubOptions {
    /// Reads HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH and HF_HUB_OFFLINE (and XDG_CACHE_HOME, HOME)
    /// through `variable`, with the meaning that huggingface_hub gives them.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<HubOptions> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let user_home = set("HOME").map(PathBuf::from);
        let expand = |path: String| match (path.strip_prefix("~/"), &user_home) {
            (Some(rest), Some(user_home)) => user_home.join(rest),
            _ => PathBuf::from(path),
        };
        let home = match (set("HF_HOME"), set("XDG_CACHE_HOME"), &user_home) {
            (Some(home), ..) => expand(home),
            (None, Some(caches), _) => expand(caches).join("huggingface"),
            (None, None, Some(user_home)) => user_home.join(".cache/huggingface"),
            (None, None, None) => {
                let what =
                    "neither HF_HOME nor HOME is set; set HF_HOME to a folder for downloads".to_string();
                return Err(Error::Hub { repo: String::new(), what });
            }
        };
        let token_path = set("HF_TOKEN_PATH").map(expand).unwrap_or_else(|| home.join("token"));
        let stored_token = || read_token(&token_path);
        Ok(HubOptions {
            cache: set("HF_HUB_CACHE").map(expand).unwrap_or_else(|| home.join("hub")),
            endpoint: set("HF_ENDPOINT")
                .map(|endpoint| endpoint.trim_end_matches('/').to_string())
                .unwrap_or_else(|| "https://huggingface.co".to_string()),
            token: set("HF_TOKEN").map(|token| token.trim().to_string()).or_else(stored_token),
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| {
                ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
            }),
        })
    }
}

impl std::fmt::Debug for HubOptions {
    /// Everything but the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let HubOptions { cache, endpoint, token, offline } = self;
        let token = if token.is_some() { "set" } else { "not set" };
        write!(f, "HubOptions {{ {}, {endpoint}, token {token}, offline: {offline} }}", cache.display())
    }
}

fn read_token(path: &Path) -> Option<String> {
    let token = std::fs::read_to_string(path).ok()?.trim().to_string();
    (!token.is_empty()).then_some(token)
}

/// How far a download has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file, as the hub names it.
    pub file: &'a str,
    /// Bytes that are here, those of an earlier attempt included.
    pub done_bytes: u64,
    /// Its length, where the hub says so.
    pub total_bytes: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_parsed_or_refused() {
        let parse = |place: &str| HubPlace::parse(place).unwrap();
        let place = |repo: &str, revision: &str, file: Option<&str>| HubPlace {
            repo: repo.to_string(),
            revision: revision.to_string(),
            file: file.map(str::to_string),
        };
        assert_eq!(parse("hf:a/b").unwrap(), place("a/b", "main", None));
        assert_eq!(parse("hf:gpt2").unwrap(), place("gpt2", "main", None));
        assert_eq!(parse("hf:a/b@refs/pr/1").unwrap(), place("a/b", "refs/pr/1", None));
        assert_eq!(parse("hf:a/b/q/c.gguf@v1").unwrap(), place("a/b", "v1", Some("q/c.gguf")));
        for bad in ["hf:", "hf:a/../b", "hf:a//b", "hf:a/b@", "hf:a/b/c.bin", "hf:a/b?x", "hf:a/b@../../x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(HubPlace::parse("a/b").is_none());
    }

    #[test]
    fn variables_mean_what_they_mean_to_huggingface_hub() {
        let options = |variables: &[(&str, &str)]| {
            let find = |name: &str| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
            };
            HubOptions::from_variables(find)
        };
        let plain = options(&[("HOME", "/nobody")]).unwrap();
        assert_eq!(plain.cache, Path::new("/nobody/.cache/huggingface/hub"));
        assert_eq!(
            (plain.endpoint.as_str(), plain.token, plain.offline),
            ("https://huggingface.co", None, false)
        );
        let home = options(&[("HOME", "/u"), ("HF_HOME", "~/hf"), ("HF_HUB_OFFLINE", "true")]).unwrap();
        assert_eq!((home.cache.as_path(), home.offline), (Path::new("/u/hf/hub"), true));
        let all =
            [("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h"), ("HF_ENDPOINT", "http://x/"), ("HF_TOKEN", " t\n")];
        let all = options(&all).unwrap();
        assert_eq!((all.cache.as_path(), all.endpoint.as_str()), (Path::new("/c"), "http://x"));
        assert_eq!(all.token.as_deref(), Some("t"));
        assert!(!format!("{all:?}").contains("\"t\"") && format!("{all:?}").contains("token set"));
        assert!(options(&[]).is_err());
    }
}
