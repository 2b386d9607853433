//! Downloads from a small hub on the loopback: the cache's layout, resuming, hashes, tokens, refusals, offline.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use luthier_checkpoint::Checkpoint;
use luthier_checkpoint::hub::{HubOptions, HubPlace, resolve};
use luthier_checkpoint::safetensors::SafetensorsWriter;
use luthier_checkpoint::{Dtype, TensorSink};
use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::safetensors::{content, info};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Default)]
struct State {
    files: HashMap<String, Vec<u8>>,
    /// Stop in the middle of the next transfer of this file.
    cut: Option<String>,
    /// Send other bytes than the hash promises.
    lie: Option<String>,
    /// Answer everything with this status.
    status: Option<u16>,
    log: Vec<String>,
}

struct Hub {
    port: u16,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Hub {
    fn start(files: HashMap<String, Vec<u8>>) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (state.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away in the middle is its own affair.
                let _ = answer(stream.unwrap(), &mut shared.lock().unwrap(), port);
            }
        });
        Hub { port, state, stop, thread: Some(thread) }
    }

    fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            cache: cache.to_path_buf(),
            endpoint: format!("http://127.0.0.1:{}", self.port),
            token: Some("secret".to_string()),
            offline: false,
        }
    }

    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn is_large(name: &str) -> bool {
    [".safetensors", ".gguf", ".bin"].iter().any(|ending| name.ends_with(ending))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn etag(name: &str, bytes: &[u8]) -> String {
    if is_large(name) {
        return hex(&Sha256::digest(bytes));
    }
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex(&hasher.finalize())
}

fn answer(mut stream: TcpStream, state: &mut State, port: u16) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let range = headers.get("range").cloned().unwrap_or_default();
    let token = headers.get("authorization").cloned().unwrap_or_default();
    state.log.push(format!("{method} {path} {range} {token}").trim_end().to_string());
    let mut reply = |head: String, body: &[u8]| {
        stream.write_all(format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n").as_bytes())?;
        stream.write_all(if method == "HEAD" { &[] } else { body })
    };
    if let Some(status) = state.status {
        return reply(format!("{status} No\r\ncontent-length: 0"), &[]);
    }
    if path == "/api/models/org/name/revision/main" {
        let siblings: Vec<_> =
            state.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return reply(format!("200 OK\r\ncontent-length: {}", body.len()), body.as_bytes());
    }
    let resolved = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
    let stored = path.strip_prefix("/storage/");
    let Some((name, bytes)) =
        resolved.or(stored).and_then(|name| Some((name, state.files.get(name)?.clone())))
    else {
        return reply("404 Not Found\r\ncontent-length: 0".to_string(), &[]);
    };
    let hash = etag(name, &bytes);
    if resolved.is_some() && is_large(name) {
        // Another host as far as tokens go.
        let location = format!("location: http://localhost:{port}/storage/{name}");
        let linked = format!("x-linked-etag: \"{hash}\"\r\nx-linked-size: {}", bytes.len());
        return reply(format!("302 Found\r\n{location}\r\n{linked}\r\ncontent-length: 0"), &[]);
    }
    let start: usize =
        range.strip_prefix("bytes=").map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    let mut body = bytes[start..].to_vec();
    if state.lie.as_deref() == Some(name) {
        body[0] ^= 1;
    }
    let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
    let place = format!("content-range: bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
    let place = if start > 0 { place } else { "accept-ranges: bytes".to_string() };
    let head = format!("{status}\r\netag: W/\"{hash}\"\r\n{place}\r\ncontent-length: {}", body.len());
    if method == "GET" && state.cut.as_deref() == Some(name) {
        state.cut = None;
        body.truncate(body.len() / 2);
    }
    reply(head, &body)
}

fn model_files() -> HashMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let infos = [info("a", Dtype::F32, &[50_000]), info("b", Dtype::F32, &[70_000])];
    let mut writer = SafetensorsWriter::create(folder.path(), &infos, &[], Some(200_000)).unwrap();
    infos.iter().for_each(|info| writer.write(&info.name, &content(info)).unwrap());
    writer.finish().unwrap();
    let mut files: HashMap<String, Vec<u8>> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    for (name, text) in [
        ("config.json", "{\"model_type\": \"llama\"}"),
        ("tokenizer.json", "{}"),
        ("additional_chat_templates/tool.jinja", "x"),
        ("pytorch_model.bin", "pickle"),
        ("quantised/m-Q4_1.gguf", "GGUF and more"),
        ("onnx/model.onnx", "onnx"),
    ] {
        files.insert(name.to_string(), text.as_bytes().to_vec());
    }
    files
}

fn place(text: &str) -> HubPlace {
    HubPlace::parse(text).unwrap().unwrap()
}

fn files_below(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            names.extend(files_below(&entry.path()).iter().map(|inner| format!("{name}/{inner}")));
        } else {
            names.push(name);
        }
    }
    names.sort();
    names
}

#[test]
fn a_model_is_fetched_once_resumed_where_it_was_cut_and_then_found_offline() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(model_files());
    hub.state.lock().unwrap().cut = Some("model-00002-of-00002.safetensors".to_string());
    let mut last = 0;
    let path = resolve(&place("hf:org/name"), &hub.options(cache.path()), &mut |progress| {
        assert!(progress.total_bytes.is_some_and(|total| progress.done_bytes <= total));
        last = progress.done_bytes;
    })
    .unwrap();
    assert!(last > 280_000);
    assert_eq!(Checkpoint::open_folder(&path).unwrap().tensors.infos().len(), 2);
    let model = cache.path().join("models--org--name");
    assert_eq!(path, model.join("snapshots").join(COMMIT));
    assert_eq!(
        files_below(&path),
        [
            "additional_chat_templates/tool.jinja",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json"
        ]
    );
    assert_eq!(fs::read_to_string(model.join("refs/main")).unwrap(), COMMIT);
    let files = model_files();
    for name in files_below(&path) {
        let hash = etag(&name, &files[&name]);
        let up = if name.contains('/') { "../../../blobs" } else { "../../blobs" };
        assert_eq!(fs::read_link(path.join(&name)).unwrap(), Path::new(up).join(&hash));
        assert_eq!(fs::read(model.join("blobs").join(hash)).unwrap(), files[&name]);
    }
    assert_eq!(files_below(&model.join("blobs")).len(), 6);

    let log = hub.take_log();
    let half = files["model-00002-of-00002.safetensors"].len() / 2;
    let resumed = format!("GET /storage/model-00002-of-00002.safetensors bytes={half}-");
    assert!(log.contains(&resumed), "{log:#?}");
    assert!(log.iter().all(|line| line.contains("Bearer secret") != line.contains("/storage/")), "{log:#?}");
    assert!(log.iter().all(|line| !line.contains(".bin") && !line.contains("onnx")));

    assert_eq!(resolve(&place("hf:org/name"), &hub.options(cache.path()), &mut |_| {}).unwrap(), path);
    assert_eq!(hub.take_log(), ["GET /api/models/org/name/revision/main  Bearer secret"]);
    let offline = HubOptions { offline: true, ..hub.options(cache.path()) };
    for text in ["hf:org/name", &format!("hf:org/name@{COMMIT}")] {
        assert_eq!(resolve(&place(text), &offline, &mut |_| {}).unwrap(), path);
    }
    assert_eq!(hub.take_log(), [""; 0]);
    fs::remove_file(path.join("model-00001-of-00002.safetensors")).unwrap();
    let error = resolve(&place("hf:org/name"), &offline, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("model-00001-of-00002.safetensors is missing"), "{error}");
}

#[test]
fn files_of_pytorch_are_fetched_where_there_are_no_safetensors() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/torch/zip.bin");
    let weights = fs::read(golden).unwrap();
    let mut plain = model_files();
    plain.retain(|name, _| !name.contains("safetensors"));
    plain.insert("pytorch_model.bin".to_string(), weights.clone());
    let mut sharded = plain.clone();
    sharded.remove("pytorch_model.bin");
    sharded.insert("part-1.bin".to_string(), weights);
    let names: Vec<String> = {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("x.bin"), &sharded["part-1.bin"]).unwrap();
        let file = luthier_checkpoint::torch::TorchFile::open(&home.path().join("x.bin")).unwrap();
        luthier_checkpoint::TensorSource::infos(&file).iter().map(|info| info.name.clone()).collect()
    };
    let map: serde_json::Map<_, _> = names.iter().map(|name| (name.clone(), "part-1.bin".into())).collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    sharded.insert("pytorch_model.bin.index.json".to_string(), index.into_bytes());
    for (files, weights) in [(plain, "pytorch_model.bin"), (sharded, "part-1.bin")] {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::start(files);
        let options = hub.options(cache.path());
        let path = resolve(&place("hf:org/name"), &options, &mut |_| {}).unwrap();
        assert_eq!(Checkpoint::open_folder(&path).unwrap().tensors.infos().len(), names.len());
        let offline = HubOptions { offline: true, ..options };
        assert_eq!(resolve(&place("hf:org/name"), &offline, &mut |_| {}).unwrap(), path);
        fs::remove_file(path.join(weights)).unwrap();
        let error = resolve(&place("hf:org/name"), &offline, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("is missing"), "{error}");
    }
    let mut none = model_files();
    none.retain(|name, _| !name.contains("safetensors") && !name.ends_with(".bin"));
    let (cache, hub) = (tempfile::tempdir().unwrap(), Hub::start(none));
    let error = resolve(&place("hf:org/name"), &hub.options(cache.path()), &mut |_| {});
    let error = error.unwrap_err().to_string();
    assert!(error.contains("pytorch_model.bin"), "{error}");
}

#[test]
fn one_gguf_file_is_fetched_alone() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(model_files());
    let options = hub.options(cache.path());
    let path = resolve(&place("hf:org/name/quantised/m-Q4_1.gguf"), &options, &mut |_| {}).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"GGUF and more");
    assert_eq!(files_below(&cache.path().join("models--org--name/blobs")).len(), 1);
    let error = resolve(&place("hf:org/name/other.gguf"), &options, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("has no file other.gguf; it has quantised/m-Q4_1.gguf"), "{error}");
}

#[test]
fn a_false_hash_is_refused_and_leaves_nothing() {
    for liar in ["config.json", "model-00001-of-00002.safetensors"] {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::start(model_files());
        let options = hub.options(cache.path());
        hub.state.lock().unwrap().lie = Some(liar.to_string());
        let error = resolve(&place("hf:org/name"), &options, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(liar) && error.contains("its hash is"), "{error}");
        let model = cache.path().join("models--org--name");
        assert!(!files_below(&model.join("snapshots")).iter().any(|name| name.ends_with(liar)));
        assert!(!files_below(&model.join("blobs")).iter().any(|name| name.ends_with(".incomplete")));
        assert!(!model.join("refs/main").exists());
        hub.state.lock().unwrap().lie = None;
        resolve(&place("hf:org/name"), &options, &mut |_| {}).unwrap();
    }
}

#[test]
fn a_damaged_remnant_is_fetched_again_from_the_start() {
    let name = "model-00001-of-00002.safetensors";
    for remnant_len in [10, 500_000] {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::start(model_files());
        let blobs = cache.path().join("models--org--name/blobs");
        fs::create_dir_all(&blobs).unwrap();
        let files = model_files();
        let hash = etag(name, &files[name]);
        fs::write(blobs.join(format!("{hash}.incomplete")), vec![0; remnant_len.min(files[name].len())])
            .unwrap();
        resolve(&place("hf:org/name"), &hub.options(cache.path()), &mut |_| {}).unwrap();
        assert_eq!(fs::read(blobs.join(hash)).unwrap(), files[name]);
    }
}

#[test]
fn what_the_hub_refuses_is_explained() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(model_files());
    let options = hub.options(cache.path());
    let error =
        |place_text: &str| resolve(&place(place_text), &options, &mut |_| {}).unwrap_err().to_string();
    assert!(error("hf:org/nobody").contains("no such model"), "{}", error("hf:org/nobody"));
    assert!(error("hf:org/name@v9").contains("no revision v9"), "{}", error("hf:org/name@v9"));
    for (status, wanted) in [(401, "set HF_TOKEN"), (403, "set HF_TOKEN"), (500, "try again later")] {
        hub.state.lock().unwrap().status = Some(status);
        assert!(error("hf:org/name").contains(wanted), "{}", error("hf:org/name"));
    }
    hub.state.lock().unwrap().status = None;
    hub.state.lock().unwrap().files.remove("config.json");
    assert!(error("hf:org/name").contains("no config.json"), "{}", error("hf:org/name"));
    assert_eq!(files_below(cache.path()), [""; 0]);
    drop(hub);
    assert!(error("hf:org/name").contains("HF_HUB_OFFLINE=1"), "{}", error("hf:org/name"));
}

#[test]
fn offline_without_a_cache_asks_nobody() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(model_files());
    let offline = HubOptions { offline: true, ..hub.options(cache.path()) };
    let error = resolve(&place("hf:org/name"), &offline, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE is set") && error.contains("revision main"), "{error}");
    assert_eq!(hub.take_log(), [""; 0]);
    assert_eq!(files_below(cache.path()), [""; 0]);
}
