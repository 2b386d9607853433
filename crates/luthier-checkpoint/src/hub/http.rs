//! Requests to a hub: redirects followed by hand, so that the token goes to the hub alone and its headers are seen.

use std::io::Read;
use std::time::Duration;

use ureq::Agent;
use ureq::http::{HeaderMap, Response};

use super::{HubOptions, HubPlace};
use crate::{Error, Result};

/// Redirects in a row before a hub is taken to be broken.
const MAX_REDIRECTS: usize = 10;

/// Largest answer that is read into memory.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// A hub, one model's view of it.
pub(super) struct Client<'a> {
    agent: Agent,
    options: &'a HubOptions,
    repo: &'a str,
}

/// What the hub says about a file before it is fetched.
#[derive(Debug)]
pub(super) struct FileHead {
    /// Where its bytes are; perhaps another machine.
    pub(super) url: String,
    /// The file's hash, by which it is kept.
    pub(super) etag: String,
    /// Whether the hub vouches that the etag is the SHA-256 of the content (files in large-file storage).
    pub(super) is_linked: bool,
    pub(super) size_bytes: Option<u64>,
}

impl<'a> Client<'a> {
    pub(super) fn new(options: &'a HubOptions, place: &'a HubPlace) -> Client<'a> {
        let host = host_of(&options.endpoint);
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("luthier/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        if is_loopback(host) {
            config = config.proxy(None);
        }
        Client { agent: config.build().new_agent(), options, repo: &place.repo }
    }

    /// An error about this model.
    pub(super) fn error(&self, what: impl Into<String>) -> Error {
        Error::Hub { repo: self.repo.to_string(), what: what.into() }
    }

    /// The JSON that the hub's API gives for `path`; `None` for 404.
    pub(super) fn api(&self, path: &str) -> Result<Option<serde_json::Value>> {
        let url = format!("{}/api/models/{path}", self.options.endpoint);
        let response = self.follow(&url, false, None, |_| true)?.1;
        if response.status().as_u16() == 404 {
            return Ok(None);
        }
        self.check_status(&url, &response)?;
        let mut text = Vec::new();
        let mut reader = response.into_body().into_reader().take(MAX_TEXT_BYTES);
        reader.read_to_end(&mut text).map_err(|problem| self.error(format!("{url}: {problem}")))?;
        let parsed = serde_json::from_slice(&text);
        parsed.map(Some).map_err(|problem| self.error(format!("{url}: the answer is not JSON: {problem}")))
    }

    /// Asks for a file's hash, length and whereabouts.
    pub(super) fn head(&self, commit: &str, file: &str) -> Result<FileHead> {
        let url = format!("{}/{}/resolve/{commit}/{file}", self.options.endpoint, self.repo);
        // The hub's own answer, not that of the storage behind it, carries the hash.
        let (url, response) = self
            .follow(&url, true, None, |location| location.starts_with('/') && !location.starts_with("//"))?;
        if !response.status().is_redirection() {
            self.check_status(&url, &response)?;
        }
        let headers = response.headers();
        let linked = header(headers, "x-linked-etag");
        let is_linked = linked.is_some();
        let etag = linked
            .or_else(|| header(headers, "etag"))
            .map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_string())
            .filter(|etag| super::is_plain_name(etag))
            .ok_or_else(|| {
                self.error(format!("{file}: the hub states no hash (etag), so it cannot be checked"))
            })?;
        let size = header(headers, "x-linked-size");
        let size = if is_linked { size } else { header(headers, "content-length") };
        let location = header(headers, "location").filter(|_| response.status().is_redirection());
        Ok(FileHead {
            etag,
            is_linked,
            size_bytes: size.and_then(|size| size.parse().ok()),
            url: location.unwrap_or(url),
        })
    }

    /// Asks for a file's bytes from `start` on. True: the answer begins there; false: it begins at the file's start.
    pub(super) fn get_from(&self, url: &str, start: u64) -> Result<(bool, Response<ureq::Body>)> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let (url, response) = self.follow(url, false, range.as_deref(), |_| true)?;
        if response.status().as_u16() == 416 {
            return Ok((true, response));
        }
        self.check_status(&url, &response)?;
        let begins_there = match header(response.headers(), "content-range") {
            Some(range) => {
                range.strip_prefix("bytes ").is_some_and(|range| range.starts_with(&format!("{start}-")))
            }
            None => false,
        };
        Ok((response.status().as_u16() == 206 && begins_there, response))
    }

    /// Sends a request and follows redirects as long as `go_on` agrees with their target.
    fn follow(
        &self,
        url: &str,
        head: bool,
        range: Option<&str>,
        go_on: impl Fn(&str) -> bool,
    ) -> Result<(String, Response<ureq::Body>)> {
        let mut url = url.to_string();
        for _ in 0..MAX_REDIRECTS {
            let mut request = if head { self.agent.head(&url) } else { self.agent.get(&url) };
            if let Some(range) = range {
                request = request.header("range", range);
            }
            if let Some(token) = self.options.token.as_ref().filter(|_| self.is_hub(&url)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|problem| self.unreachable(&url, &problem))?;
            let location = header(response.headers(), "location");
            match location.filter(|location| response.status().is_redirection() && go_on(location)) {
                None => return Ok((url, response)),
                Some(location) => url = absolute(&url, &location),
            }
        }
        Err(self.error(format!("{url}: redirects without end")))
    }

    /// Whether a URL is on the endpoint itself, scheme and port included.
    fn is_hub(&self, url: &str) -> bool {
        let rest = url.strip_prefix(&self.options.endpoint);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn unreachable(&self, url: &str, problem: &ureq::Error) -> Error {
        self.error(format!(
            "{url}: {problem}; check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use what the cache holds"
        ))
    }

    fn check_status<T>(&self, url: &str, response: &Response<T>) -> Result<()> {
        let code =
            response.headers().get("x-error-message").and_then(|text| text.to_str().ok()).unwrap_or("");
        let advice = match response.status().as_u16() {
            200..=299 => return Ok(()),
            401 | 403 => {
                "the model is private, gated or does not exist; check the name, accept its terms, set HF_TOKEN"
            }
            404 => "there is no such model, revision or file; check the name",
            429 => "the hub asks to slow down; try again later",
            _ => "try again later",
        };
        let separator = if code.is_empty() { "" } else { " " };
        Err(self.error(format!("{url}: status {}{separator}{code}; {advice}", response.status().as_u16())))
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_string)
}

fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// Whether a host, with or without a port, is this machine: no proxy is asked then.
fn is_loopback(host: &str) -> bool {
    let rest = ["localhost", "127.0.0.1", "[::1]"].iter().find_map(|local| host.strip_prefix(local));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

/// The target of a redirect from `url`.
fn absolute(url: &str, location: &str) -> String {
    if location.contains("://") {
        return location.to_string();
    }
    let scheme = url.split_once("://").map_or("https", |(scheme, _)| scheme);
    match location.strip_prefix("//") {
        Some(rest) => format!("{scheme}://{rest}"),
        None => format!("{scheme}://{}/{}", host_of(url), location.trim_start_matches('/')),
    }
}
