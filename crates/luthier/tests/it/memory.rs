//! Memory of verbs that go through a model tensor by tensor: it does not grow with the model, and the plan says its bound.

use std::path::Path;

use serde_json::json;

use crate::{command, json};

/// Of the mapped inputs: each of two is read at two places, by the work and by its hash, and where a file lies in the
/// page cache in large pieces, the system maps up to 2 MB on each side of a touched byte. A quarter of both large models.
const MAPPED_BYTES: u64 = 24 << 20;

/// A recipe that merges a model and the other one of its size.
fn recipe(at: &Path, method: &str, model: &str) -> String {
    let base = match method {
        "linear" | "karcher" => String::new(),
        _ => format!("base_model: {model}\n"),
    };
    let parameters = match method {
        "slerp" => "parameters: {t: 0.3}\n",
        "karcher" => "",
        "sce" => "parameters: {select_topk: 0.4}\n",
        "linear" => "parameters: {weight: 0.5}\n",
        _ => "parameters: {weight: 0.5, density: 0.4}\n",
    };
    let text = format!(
        "merge_method: {method}\n{base}models: [{{model: {model}}}, {{model: {model}-other}}]\n{parameters}"
    );
    let name = format!("{method}-{model}.yaml");
    std::fs::write(at.join(&name), text).unwrap();
    name
}

/// A model folder of random weights with that many layers of 2 MB each.
pub(crate) fn make(at: &Path, name: &str, layers: usize, seed: u64) {
    std::fs::create_dir(at.join(name)).unwrap();
    let recipe = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 1024,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64,
        "vocab_size": 1000, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16",
    });
    let layout = luthier_arch::layout(recipe.as_object().unwrap()).unwrap();
    let (mut header, mut offset) = (serde_json::Map::new(), 0usize);
    for spec in &layout.tensors {
        let end = offset + 2 * spec.shape.iter().product::<usize>();
        header.insert(
            spec.name.clone(),
            json!({"dtype": "BF16", "shape": spec.shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let header = serde_json::to_string(&header).unwrap();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    let mut state = seed;
    bytes.extend((0..offset / 2).flat_map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Between 2^-7 and 2^-6, of both signs.
        (0x3c00u16 | (state >> 56) as u16 & 0x7f | (state >> 40) as u16 & 0x8000).to_le_bytes()
    }));
    std::fs::write(at.join(name).join("model.safetensors"), bytes).unwrap();
    std::fs::write(at.join(name).join("config.json"), recipe.to_string()).unwrap();
}

/// The most memory that a run has held, mapped pages of inputs and of the program included.
#[cfg(target_os = "linux")]
fn peak_bytes(at: &Path, arguments: &[&str]) -> u64 {
    let mut child = command(at, arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut peak_bytes = 0;
    loop {
        // Once it has ended, its status says no sizes any more.
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        if let Some(line) = status.lines().find_map(|line| line.strip_prefix("VmHWM:")) {
            peak_bytes = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{arguments:?}");
            return peak_bytes;
        }
        std::thread::yield_now();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn memory_is_that_of_the_plan_however_many_layers_there_are() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path();
    let at_home = at;
    make(at, "small", 1, 7);
    make(at, "large", 24, 7);
    make(at, "small-other", 1, 9);
    make(at, "large-other", 24, 9);
    for verb in [
        &["convert", "IN", "out.gguf"][..],
        &["convert", "IN", "out", "--dtype", "f32"],
        &["quantize", "IN", "out.gguf", "--to", "Q4_K_M"],
        &["quantize", "IN", "out", "--to", "nf4"],
        &["quantize", "IN", "out.gguf", "--target-size", "IN"],
        &["merge", "linear", "out"],
        &["merge", "slerp", "out"],
        &["merge", "karcher", "out"],
        &["merge", "della", "out"],
        &["merge", "breadcrumbs", "out"],
        &["merge", "sce", "out"],
    ] {
        let run = |model: &'static str| {
            let size = if model == "small" { "700k" } else { "12M" };
            let fill = |(at, word): (usize, &&'static str)| match (*word, at) {
                ("IN", 1) => model.to_string(),
                ("IN", _) => size.to_string(),
                (method, 1) => recipe(at_home, method, model),
                (word, _) => word.to_string(),
            };
            let arguments: Vec<String> = verb.iter().enumerate().map(fill).collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let planned = json(at, &[&arguments[..], &["--plan", "--force"]].concat())["memory_bytes"]
                .as_u64()
                .unwrap();
            // A look may miss the end of a run, and the system keeps mapped pages as it likes: the least of some runs
            // is what a run needs, the most is what one was seen to take.
            let peaks = [(); 3].map(|()| peak_bytes(at, &[&arguments[..], &["--force", "--json"]].concat()));
            (planned, peaks)
        };
        let ((small_plan, small), (large_plan, large)) = (run("small"), run("large"));
        let (small, large) = (small.into_iter().max().unwrap(), large.into_iter().min().unwrap());
        assert!(small_plan <= large_plan && large_plan < 16 << 20, "{verb:?}: {small_plan}, {large_plan}");
        // A run of one layer holds the program itself and what the plan says of it at least in part.
        assert!(large <= small + large_plan + MAPPED_BYTES, "{verb:?}: {small}, {large}, {large_plan}");
    }
}
