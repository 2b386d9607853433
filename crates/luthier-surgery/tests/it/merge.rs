//! Merges: mergekit's values, identities, refusals.

use std::path::{Path, PathBuf};

use luthier_checkpoint::safetensors::{SafetensorsFile, SafetensorsWriter};
use luthier_checkpoint::{Checkpoint, Dtype, Lineage, TensorSink, TensorSource, values};
use luthier_surgery::Input;
use luthier_surgery::merge::{Options, Recipe, methods, plan, run};
use serde_json::{Value, json};

use crate::models::{config, names, write};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/merge")
}

pub(crate) fn options() -> Options {
    Options {
        verb: "merge",
        record: serde_json::Value::Null,
        measurements: serde_json::Map::new(),
        seed: 7,
        force: false,
        text: "a recipe".to_string(),
    }
}

pub(crate) fn recipe(value: Value) -> Recipe {
    serde_json::from_value(value).unwrap()
}

/// Opens the recipe's models inside `folder`.
pub(crate) fn opened(recipe: &Recipe, folder: &Path) -> Vec<Input> {
    let open = |place: &String| Input::new(place, Checkpoint::open_folder(&folder.join(place)).unwrap());
    recipe.places().iter().map(open).collect()
}

pub(crate) fn values_of(tensors: &dyn TensorSource, name: &str) -> Vec<f32> {
    let info = tensors.infos().iter().find(|info| info.name == name).unwrap();
    values::to_f32(name, info.dtype, &tensors.read(name).unwrap()).unwrap()
}

pub(crate) fn refusal(recipe: Value, folder: &Path) -> String {
    let recipe: Recipe = match serde_json::from_value(recipe) {
        Ok(recipe) => recipe,
        Err(problem) => return problem.to_string(),
    };
    let out = folder.join("refused");
    let error = run(&recipe, &opened(&recipe, folder), &out, &options()).unwrap_err().to_string();
    assert!(!out.exists());
    error
}

#[test]
fn every_method_gives_mergekits_values() {
    let expected = SafetensorsFile::open(&golden().join("expected.safetensors")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for name in names(&golden()).iter().filter_map(|name| name.strip_suffix(".json")) {
        // JSON is YAML too.
        let text = std::fs::read_to_string(golden().join(format!("{name}.json"))).unwrap();
        let recipe: Recipe = serde_json::from_str(&text).unwrap();
        seen.push(recipe.merge_method.clone());
        let out = home.path().join(name);
        run(&recipe, &opened(&recipe, &golden()), &out, &options()).unwrap();
        let merged = Checkpoint::open_folder(&out).unwrap();
        let prefix = format!("{name}/");
        let wanted: Vec<&str> =
            expected.infos().iter().filter_map(|info| info.name.strip_prefix(&prefix)).collect();
        assert_eq!(merged.tensors.infos().len(), wanted.len(), "{name}");
        for tensor in wanted {
            let ours = values_of(merged.tensors.as_ref(), tensor);
            let theirs = values_of(&expected, &format!("{prefix}{tensor}"));
            assert_eq!(ours.len(), theirs.len(), "{name} {tensor}");
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert!((ours - theirs).abs() <= 1e-6, "{name} {tensor}: {ours} and {theirs}");
            }
        }
    }
    for method in methods() {
        assert!(seen.iter().any(|seen| seen == method), "{method} is compared with nothing");
    }
}

#[test]
fn slices_renumber_layers_and_the_config_follows() {
    let home = tempfile::tempdir().unwrap();
    let mut with_types = config("qwen2", 12, 9);
    with_types
        .insert("layer_types".to_string(), json!(["full_attention", "full_attention", "full_attention"]));
    write(&home.path().join("a"), &with_types, Dtype::BF16, 1);
    write(&home.path().join("b"), &with_types, Dtype::BF16, 2);
    let recipe = recipe(json!({"merge_method": "passthrough", "slices": [
        {"sources": [{"model": "a", "layer_range": [0, 2]}]}, {"sources": [{"model": "b", "layer_range": [1, 3]}]}]}));
    let out = home.path().join("out");
    let inputs = opened(&recipe, home.path());
    let report = run(&recipe, &inputs, &out, &options()).unwrap();
    let merged = luthier_arch::open(&out).unwrap();
    assert_eq!(merged.config["num_hidden_layers"], json!(4));
    assert_eq!(merged.config["layer_types"].as_array().unwrap().len(), 4);
    luthier_arch::check_headers(&merged).unwrap();
    assert_eq!(report.ledger.copied, report.ledger.output_tensors);
    assert!(report.ledger.dropped.iter().all(|dropped| dropped.reason.contains("slices")));
    let name = "mlp.up_proj.weight";
    let ours = merged.tensors.read(&format!("model.layers.3.{name}")).unwrap();
    let theirs = inputs[1].checkpoint.tensors.read(&format!("model.layers.2.{name}")).unwrap();
    assert_eq!(ours[..], theirs[..]);
    assert_eq!(plan(&recipe, &inputs, &options()).unwrap().tensors.len(), report.ledger.output_tensors);
    let lineage = Lineage::read(&out).unwrap().unwrap();
    assert_eq!((lineage.verb.as_str(), lineage.parents.len()), ("merge", 2));
}

#[test]
fn a_model_merged_with_itself_is_itself() {
    let home = tempfile::tempdir().unwrap();
    for (place, seed) in [("a", 1), ("twin", 1), ("third", 1)] {
        write(&home.path().join(place), &config("gemma2", 12, 9), Dtype::BF16, seed);
    }
    for method in methods() {
        let models = match method {
            "passthrough" => json!([{"model": "a"}]),
            "slerp" | "nearswap" => json!([{"model": "a"}, {"model": "twin"}]),
            "nuslerp" => {
                json!([{"model": "twin", "parameters": {"weight": 1}}, {"model": "third", "parameters": {"weight": 1}}])
            }
            "karcher" | "model_stock" | "sce" => json!([{"model": "twin"}, {"model": "third"}]),
            _ => {
                json!([{"model": "twin", "parameters": {"weight": 0.5}}, {"model": "third", "parameters": {"weight": 0.5}}])
            }
        };
        let mut value = json!({"merge_method": method, "models": models});
        if !["linear", "karcher", "passthrough", "multislerp"].contains(&method) {
            value["base_model"] = json!("a");
        }
        if ["slerp", "nearswap"].contains(&method) {
            value["parameters"] = json!({"t": 0.5});
        }
        let recipe = recipe(value);
        let out = home.path().join(format!("out-{method}"));
        let inputs = opened(&recipe, home.path());
        run(&recipe, &inputs, &out, &options()).unwrap();
        let merged = Checkpoint::open_folder(&out).unwrap();
        for info in inputs[0].checkpoint.tensors.infos() {
            let before = inputs[0].checkpoint.tensors.read(&info.name).unwrap();
            let after = merged.tensors.read(&info.name).unwrap();
            assert_eq!(after[..], before[..], "{method} {}", info.name);
        }
    }
}

#[test]
fn random_methods_keep_the_density_and_follow_the_seed() {
    let home = tempfile::tempdir().unwrap();
    let wide = config("llama", 64, 300);
    write(&home.path().join("a"), &wide, Dtype::F32, 1);
    write(&home.path().join("b"), &wide, Dtype::F32, 2);
    let recipe =
        recipe(json!({"merge_method": "dare_linear", "base_model": "a", "parameters": {"rescale": false},
        "models": [{"model": "b", "parameters": {"weight": 1, "density": 0.3}}]}));
    let inputs = opened(&recipe, home.path());
    let merge = |place: &str, seed: u64| {
        let out = home.path().join(place);
        run(&recipe, &inputs, &out, &Options { seed, ..options() }).unwrap();
        values_of(Checkpoint::open_folder(&out).unwrap().tensors.as_ref(), "model.embed_tokens.weight")
    };
    let (first, again, other) = (merge("1", 1), merge("2", 1), merge("3", 2));
    assert!(first == again && first != other);
    let base = values_of(inputs[0].checkpoint.tensors.as_ref(), "model.embed_tokens.weight");
    let changed = first.iter().zip(&base).filter(|(a, b)| (*a - *b).abs() > 0.0).count();
    let share = changed as f64 / base.len() as f64;
    assert!((share - 0.3).abs() < 0.015, "{share}");
}

#[test]
fn an_unknown_architecture_is_merged_by_name_and_has_no_slices() {
    let home = tempfile::tempdir().unwrap();
    for (place, seed) in [("a", 1), ("b", 2)] {
        let folder = write(&home.path().join(place), &config("llama", 12, 9), Dtype::F32, seed);
        let mut strange = config("llama", 12, 9);
        strange.insert("model_type".to_string(), json!("strange"));
        if place == "b" {
            strange.shift_remove("model_type");
        }
        std::fs::write(folder.join("config.json"), luthier_checkpoint::json::to_text(&strange)).unwrap();
    }
    let by_depth = recipe(json!({"merge_method": "linear", "models": [
        {"model": "a", "parameters": {"weight": [1, 0]}}, {"model": "b", "parameters": {"weight": [0, 1]}}]}));
    let inputs = opened(&by_depth, home.path());
    let out = home.path().join("out");
    run(&by_depth, &inputs, &out, &options()).unwrap();
    let merged = Checkpoint::open_folder(&out).unwrap();
    for (name, input) in [("model.layers.0.mlp.up_proj.weight", 0), ("model.layers.2.mlp.up_proj.weight", 1)]
    {
        let before = inputs[input].checkpoint.tensors.read(name).unwrap();
        assert_eq!(merged.tensors.read(name).unwrap()[..], before[..]);
    }
    let slices = json!({"merge_method": "passthrough", "slices": [{"sources": [{"model": "a", "layer_range": [0, 1]}]}]});
    assert!(refusal(slices, home.path()).contains("the architecture is not known"));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    write(&at("a"), &config("llama", 12, 9), Dtype::F32, 1);
    write(&at("wide"), &config("llama", 16, 9), Dtype::F32, 1);
    write(&at("words"), &config("llama", 12, 10), Dtype::F32, 1);
    write(&at("other"), &config("qwen2", 12, 9), Dtype::F32, 1);
    let mut tied = config("llama", 12, 9);
    tied.insert("tie_word_embeddings".to_string(), json!(true));
    write(&at("tied"), &tied, Dtype::F32, 1);
    let linear = |a: &str, b: &str| json!({"merge_method": "linear", "parameters": {"weight": 1}, "models": [{"model": a}, {"model": b}]});
    let check = |recipe: Value, wanted: &str| {
        let came = refusal(recipe, home.path());
        assert!(came.contains(wanted), "wanted {wanted:?}, came {came:?}");
    };
    check(linear("a", "wide"), "model.embed_tokens.weight: has shape [9, 12] in a and [9, 16] in wide");
    check(linear("a", "words"), "tokenizer_source: union");
    check(linear("a", "other"), "only models of one architecture");
    check(linear("tied", "a"), "lm_head.weight: is a weight of its own in a, but tied to");
    check(json!({"merge_method": "tis", "models": [{"model": "a"}]}), "did you mean ties?");
    check(json!({"merge_method": "linear"}), "exactly one of models, slices and modules");
    check(
        json!({"merge_method": "linear", "models": [], "parameters": {"wieght": 1}}),
        "did you mean weight?",
    );
    check(json!({"merge_method": "linear", "modles": []}), "unknown field `modles`");
    let mut wide = linear("a", "tied");
    wide["dtype"] = json!("float64");
    check(wide, "with out_dtype: float64");
    check(json!({"merge_method": "ties", "models": [{"model": "a"}]}), "wanted a base_model");
    check(json!({"merge_method": "linear", "models": [{"model": "a"}]}), "parameter weight is missing");
    check(json!({"merge_method": "linear", "models": [{"model": "a"}, {"model": "a"}]}), "named twice");
    check(
        json!({"merge_method": "passthrough", "slices": [{"sources": [{"model": "a", "layer_range": [2, 4]}]}]}),
        "layers 0 to 3",
    );
    let broken = write(&at("broken"), &config("llama", 12, 9), Dtype::F32, 1).join("model.safetensors");
    let mut bytes = std::fs::read(&broken).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&broken, bytes).unwrap();
    check(linear("a", "broken"), "NaN or infinite");
    check(
        json!({"merge_method": "slerp", "base_model": "a", "parameters": {"t": 0.5}, "models": [{"model": "broken"}]}),
        "NaN or infinite",
    );
    let mut zero = linear("a", "a2");
    zero["models"][1]["model"] = json!("tied2");
    write(&at("tied2"), &config("llama", 12, 9), Dtype::F32, 3);
    zero["models"][0]["parameters"] = json!({"weight": -1});
    check(zero, "the weights add up to 0");
}

/// Writes the tensors of a model again as shards of at most that many bytes.
fn shard(from: &Path, to: &Path, max_bytes: usize) {
    let model = Checkpoint::open_folder(from).unwrap();
    std::fs::create_dir_all(to).unwrap();
    let infos = model.tensors.infos();
    let metadata = SafetensorsWriter::pt_metadata();
    let mut writer = SafetensorsWriter::create(to, infos, &metadata, Some(max_bytes)).unwrap();
    for info in infos {
        writer.write(&info.name, &model.tensors.read(&info.name).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
}

#[test]
fn shards_and_types_of_the_inputs_do_not_matter() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    write(&at("a"), &config("llama", 12, 9), Dtype::F16, 1);
    write(&at("b"), &config("llama", 12, 9), Dtype::BF16, 2);
    shard(&at("a"), &at("a-shards"), 700);
    assert!(names(&at("a-shards")).len() > 4, "several shards");
    let merged = |a: &str, dtype: Option<&str>| {
        let mut value = json!({"merge_method": "ties", "base_model": a, "models": [
            {"model": "b", "parameters": {"weight": 0.7, "density": 0.6}}]});
        if let Some(dtype) = dtype {
            value["dtype"] = json!(dtype);
        }
        let recipe = recipe(value);
        let out = at(&format!("out-{a}-{}", dtype.unwrap_or("none")));
        run(&recipe, &opened(&recipe, home.path()), &out, &options()).unwrap();
        Checkpoint::open_folder(&out).unwrap()
    };
    let whole = merged("a", None);
    let sharded = merged("a-shards", None);
    let half = merged("a", Some("float16"));
    for info in whole.tensors.infos() {
        // f16 with bf16 becomes the type that holds both.
        assert_eq!(info.dtype, Dtype::F32, "{}", info.name);
        let values = values_of(whole.tensors.as_ref(), &info.name);
        assert_eq!(values, values_of(sharded.tensors.as_ref(), &info.name), "{}", info.name);
        for (value, half) in values.iter().zip(values_of(half.tensors.as_ref(), &info.name)) {
            assert!((value - half).abs() <= value.abs() / 2048.0 + 1e-7, "{}: {value} and {half}", info.name);
        }
    }
}
