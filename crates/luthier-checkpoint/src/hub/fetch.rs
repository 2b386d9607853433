//! From a place on a hub to a folder or file of the cache, fetching what is missing.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::{RepoCache, is_commit, make_parent};
use super::http::{Client, FileHead};
use super::{HubOptions, HubPlace, Progress};
use crate::lineage::hex;
use crate::safetensors::{INDEX_NAME, Index};
use crate::{Error, Result, folder, torch};

/// The weights of a model folder in the order in which they are looked for: the one file, the index of shards.
const WEIGHTS: [(&str, &str); 2] =
    [("model.safetensors", INDEX_NAME), (torch::SINGLE_NAME, torch::INDEX_NAME)];

/// Attempts in a row that bring no new byte before a download is given up.
const MAX_FRUITLESS_ATTEMPTS: usize = 3;

/// The folder (or the one file) of a place, fetched as far as the cache does not hold it. Only what a model needs is
/// fetched: config, weights (PyTorch's own files where there are no safetensors), tokenizer, templates, card.
pub fn resolve(
    place: &HubPlace,
    options: &HubOptions,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf> {
    let cache = RepoCache::new(options, place);
    if options.offline {
        return from_cache(place, options, &cache);
    }
    let client = Client::new(options, place);
    let (commit, names) = list_files(&client, place)?;
    let snapshot = cache.snapshot(&commit);
    let mut fetch = Fetch { client, cache, commit, on_progress };
    match &place.file {
        Some(file) => {
            if !names.contains(file) {
                return Err(fetch.client.error(format!("has no file {file}; it has {}", gguf_list(&names))));
            }
            fetch.file(file)?;
        }
        None => fetch.model(&names)?,
    }
    fetch.cache.set_commit_of(&place.revision, &fetch.commit)?;
    Ok(match &place.file {
        Some(file) => snapshot.join(file),
        None => snapshot,
    })
}

fn from_cache(place: &HubPlace, options: &HubOptions, cache: &RepoCache) -> Result<PathBuf> {
    let refuse = |what: String| Error::Hub {
        repo: place.repo.clone(),
        what: format!("HF_HUB_OFFLINE is set and {what}; fetch it once without HF_HUB_OFFLINE"),
    };
    let Some(commit) = cache.commit_of(&place.revision) else {
        let what = format!("{} does not hold revision {}", options.cache.display(), place.revision);
        return Err(refuse(what));
    };
    let snapshot = cache.snapshot(&commit);
    let missing = |name: &str| {
        let path = snapshot.join(name);
        (!path.exists()).then(|| refuse(format!("{} is missing", path.display())))
    };
    if let Some(file) = &place.file {
        return missing(file).map_or(Ok(snapshot.join(file)), Err);
    }
    let found = WEIGHTS.iter().find_map(|(single, index)| {
        let is_there = |name: &&str| snapshot.join(name).exists();
        [*single, *index].into_iter().find(is_there)
    });
    let weights = match found {
        Some(index) if index.ends_with(".index.json") => {
            read_index(&snapshot.join(index))?.shards().into_iter().map(str::to_string).collect()
        }
        Some(single) => vec![single.to_string()],
        None => vec!["model.safetensors".to_string()],
    };
    let wanted = ["config.json".to_string()].into_iter().chain(weights);
    match wanted.filter_map(|name| missing(&name)).next() {
        Some(error) => Err(error),
        None => Ok(snapshot),
    }
}

/// The commit behind the revision and the names of its files.
fn list_files(client: &Client, place: &HubPlace) -> Result<(String, Vec<String>)> {
    let revision = place.revision.replace('/', "%2F");
    let mut answer = client.api(&format!("{}/revision/{revision}", place.repo))?;
    if answer.is_none() && place.revision == "main" {
        answer = client.api(&place.repo)?;
    }
    let Some(answer) = answer else {
        let what = format!("the hub has no such model or no revision {}; check the name", place.revision);
        return Err(client.error(what));
    };
    let commit = answer["sha"].as_str().filter(|sha| is_commit(sha));
    let commit = commit.ok_or_else(|| client.error("the hub's answer names no commit (sha)"))?;
    let siblings = answer["siblings"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = siblings.iter().filter_map(|file| file["rfilename"].as_str().or(Value::as_str(file)));
    Ok((commit.to_string(), names.map(str::to_string).collect()))
}

fn gguf_list(names: &[String]) -> String {
    let ggufs: Vec<&str> = names.iter().map(String::as_str).filter(|name| name.ends_with(".gguf")).collect();
    if ggufs.is_empty() { "no .gguf file".to_string() } else { ggufs.join(", ") }
}

fn read_index(path: &Path) -> Result<Index> {
    let json = fs::read(path).map_err(|source| Error::io(path, source))?;
    let is_torch = path.file_name().is_some_and(|name| name == crate::torch::INDEX_NAME);
    let ending = if is_torch { ".bin" } else { ".safetensors" };
    Index::parse_of(&json, ending).map_err(|what| Error::format(path, what))
}

struct Fetch<'a> {
    client: Client<'a>,
    cache: RepoCache,
    commit: String,
    on_progress: &'a mut dyn FnMut(Progress),
}

impl Fetch<'_> {
    fn model(&mut self, names: &[String]) -> Result<()> {
        let has = |name: &str| names.iter().any(|other| other == name);
        if !has("config.json") {
            let what = "is no model folder (no config.json)";
            return Err(self
                .client
                .error(format!("{what}; it has {}, to be named hf:org/name/file", gguf_list(names))));
        }
        let weights = WEIGHTS.iter().find(|(single, index)| has(single) || has(index));
        let Some((single, index_name)) = weights else {
            let what = "has no weights as safetensors or pytorch_model.bin; use a revision or model that has";
            return Err(self.client.error(what));
        };
        for name in names.iter().filter(|name| *name == "config.json" || folder::is_side_file(name)) {
            self.file(name)?;
        }
        if has(single) {
            return self.file(single);
        }
        self.file(index_name)?;
        let index = read_index(&self.cache.snapshot(&self.commit).join(index_name))?;
        for shard in index.shards() {
            if !has(shard) {
                return Err(self.client.error(format!("its index names {shard}, which it does not have")));
            }
            self.file(shard)?;
        }
        Ok(())
    }

    /// Puts one file into the snapshot.
    fn file(&mut self, name: &str) -> Result<()> {
        if !name.split('/').all(super::is_plain_name) {
            return Err(self.client.error(format!("{name:?} is no file name that is fetched")));
        }
        if self.cache.snapshot(&self.commit).join(name).exists() {
            return Ok(());
        }
        let head = self.client.head(&self.commit, name)?;
        let _lock = self.cache.lock(&head.etag)?;
        if !self.cache.blob(&head.etag).exists() {
            self.blob(name, &head)?;
        }
        self.cache.link(&self.commit, name, &head.etag)
    }

    /// Fetches a blob, checks its hash, and moves it into place.
    fn blob(&mut self, name: &str, head: &FileHead) -> Result<()> {
        let blob = self.cache.blob(&head.etag);
        let partial = blob.with_file_name(format!("{}.incomplete", head.etag));
        make_parent(&blob)?;
        let was_resumed = fs::metadata(&partial).is_ok_and(|partial| partial.len() > 0);
        self.transfer(name, head, &partial)?;
        if let Err(problem) = self.check_hash(name, head, &partial) {
            fs::remove_file(&partial).map_err(|source| Error::io(&partial, source))?;
            if !was_resumed {
                return Err(problem);
            }
            // What an earlier attempt left may be at fault: once more from the start.
            self.transfer(name, head, &partial)?;
            if let Err(problem) = self.check_hash(name, head, &partial) {
                fs::remove_file(&partial).map_err(|source| Error::io(&partial, source))?;
                return Err(problem);
            }
        }
        File::open(&partial)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&partial, &blob))
            .map_err(|source| Error::io(&blob, source))
    }

    /// Fetches what `partial` lacks, again and again while the line breaks but brings something.
    fn transfer(&mut self, name: &str, head: &FileHead, partial: &Path) -> Result<()> {
        // A hub that starts over brings bytes, but none that were not there before.
        let (mut fruitless, mut furthest) = (0, 0);
        loop {
            let before = fs::metadata(partial).map_or(0, |metadata| metadata.len());
            furthest = furthest.max(before);
            if head.size_bytes == Some(before) && before > 0 {
                return Ok(());
            }
            let problem = match self.attempt(name, head, partial) {
                Ok(done) if head.size_bytes.is_none_or(|size| size == done) => return Ok(()),
                Ok(done) => self.client.error(format!(
                    "{name}: the hub states {} bytes, {done} came; the download was cut off or the hub lies",
                    head.size_bytes.unwrap_or_default()
                )),
                Err(problem @ Error::Io { .. }) => return Err(problem),
                Err(problem) => problem,
            };
            let after = fs::metadata(partial).map_or(0, |metadata| metadata.len());
            let is_too_long = head.size_bytes.is_some_and(|size| after > size);
            if is_too_long {
                fs::remove_file(partial).map_err(|source| Error::io(partial, source))?;
            }
            fruitless = if after > furthest && !is_too_long { 0 } else { fruitless + 1 };
            if fruitless == MAX_FRUITLESS_ATTEMPTS {
                return Err(problem);
            }
        }
    }

    /// One request; returns the length of `partial` when the answer ended as it should.
    fn attempt(&mut self, name: &str, head: &FileHead, partial: &Path) -> Result<u64> {
        let opened = File::options().create(true).truncate(false).write(true).open(partial);
        let mut file = opened.map_err(|source| Error::io(partial, source))?;
        let mut done = file.seek(SeekFrom::End(0)).map_err(|source| Error::io(partial, source))?;
        let (resumed, response) = self.client.get_from(&head.url, done)?;
        if !resumed {
            done = 0;
        }
        if !resumed || response.status().as_u16() == 416 {
            file.set_len(0).and_then(|()| file.rewind()).map_err(|source| Error::io(partial, source))?;
            if response.status().as_u16() == 416 {
                return Err(self.client.error(format!("{name}: the hub refuses to go on from byte {done}")));
            }
        }
        let mut reader = response.into_body().into_reader();
        let mut buffer = vec![0u8; 1 << 16];
        loop {
            let n_read = reader.read(&mut buffer).map_err(|problem| {
                self.client.error(format!("{name}: the line broke at byte {done}: {problem}"))
            })?;
            if n_read == 0 {
                return Ok(done);
            }
            file.write_all(&buffer[..n_read]).map_err(|source| Error::io(partial, source))?;
            done += n_read as u64;
            (self.on_progress)(Progress { file: name, done_bytes: done, total_bytes: head.size_bytes });
        }
    }

    /// Compares a file with the hash that the hub states.
    fn check_hash(&self, name: &str, head: &FileHead, path: &Path) -> Result<()> {
        let is_hex = head.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let came = match head.etag.len() {
            64 if is_hex => hash_file::<Sha256>(path, &[])?,
            40 if is_hex => {
                // Git hashes a blob behind its kind and length.
                let len = fs::metadata(path).map_err(|source| Error::io(path, source))?.len();
                hash_file::<Sha1>(path, format!("blob {len}\0").as_bytes())?
            }
            _ if head.is_linked => {
                let what = format!("{name}: wanted a SHA-256 from the hub, came {:?}", head.etag);
                return Err(self.client.error(what));
            }
            // A mirror's own kind of etag says nothing about the content; the length was checked.
            _ => return Ok(()),
        };
        if came.eq_ignore_ascii_case(&head.etag) {
            return Ok(());
        }
        Err(self.client.error(format!(
            "{name}: its hash is {came}, the hub states {}; the download is damaged, try again",
            head.etag
        )))
    }
}

fn hash_file<D: Digest>(path: &Path, before: &[u8]) -> Result<String> {
    let mut hasher = D::new();
    hasher.update(before);
    let mut file = File::open(path).map_err(|source| Error::io(path, source))?;
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(|source| Error::io(path, source))? {
            0 => return Ok(hex(hasher.finalize().as_slice())),
            n_read => hasher.update(&buffer[..n_read]),
        }
    }
}
