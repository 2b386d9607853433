//! Merges of models whose vocabularies differ: mergekit's rows, tokenizers that still work, refusals.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use luthier_checkpoint::safetensors::SafetensorsFile;
use luthier_checkpoint::{Checkpoint, Dtype, TensorSource};
use luthier_surgery::merge::{Report, run};
use luthier_text::Tokenizer;
use serde_json::{Value, json};

use crate::merge::{opened, options, recipe, refusal, values_of};
use crate::models::{config, tokenizer as words, write};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/vocabularies")
}

fn merged(value: Value, folder: &Path, out: &Path) -> (Report, Checkpoint, Tokenizer) {
    let recipe = recipe(value);
    let report = run(&recipe, &opened(&recipe, folder), out, &options()).unwrap();
    let model = luthier_arch::open(out).unwrap();
    let files: BTreeMap<String, Vec<u8>> =
        model.side_files.iter().map(|file| (file.name.clone(), file.bytes.clone())).collect();
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    (report, model, tokenizer)
}

/// The values of one row.
fn row(values: &[f32], row: usize, rows: usize) -> &[f32] {
    let width = values.len() / rows;
    &values[row * width..(row + 1) * width]
}

fn close(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() <= 1e-6, "{what}: {ours} and {theirs}");
    }
}

#[test]
fn every_source_of_tokens_gives_mergekits_rows() {
    let expected = SafetensorsFile::open(&golden().join("expected.safetensors")).unwrap();
    let tokens: BTreeMap<String, Vec<String>> =
        serde_json::from_slice(&std::fs::read(golden().join("tokens.json")).unwrap()).unwrap();
    let home = tempfile::tempdir().unwrap();
    for (name, tokens) in &tokens {
        let text = std::fs::read_to_string(golden().join(format!("{name}.json"))).unwrap();
        let out = home.path().join(name);
        let (report, model, tokenizer) = merged(serde_json::from_str(&text).unwrap(), &golden(), &out);
        let mapping = report.vocabulary.unwrap();
        assert_eq!(mapping.rows, model.config["vocab_size"].as_u64().unwrap() as usize, "{name}");
        assert_eq!(tokenizer.vocab_size(), tokens.len(), "{name}");
        for info in expected.infos().iter().filter(|info| info.name.starts_with(&format!("{name}/"))) {
            let tensor = info.name.split_once('/').unwrap().1;
            let (ours, theirs) =
                (values_of(model.tensors.as_ref(), tensor), values_of(&expected, &info.name));
            if !["model.embed_tokens.weight", "lm_head.weight"].contains(&tensor) {
                close(&ours, &theirs, &info.name);
                continue;
            }
            for (at, token) in tokens.iter().enumerate() {
                let id = tokenizer.id(token).unwrap() as usize;
                let what = format!("{} {token}", info.name);
                close(row(&ours, id, mapping.rows), row(&theirs, at, info.shape[0]), &what);
            }
            for at in tokens.len()..info.shape[0] {
                close(row(&ours, at, mapping.rows), row(&theirs, at, info.shape[0]), "padding");
            }
        }
    }
}

#[test]
fn a_union_keeps_the_base_and_reads_what_the_others_read() {
    let home = tempfile::tempdir().unwrap();
    let union = json!({"merge_method": "linear", "parameters": {"weight": 1}, "tokenizer_source": "union",
        "models": [{"model": "base"}, {"model": "other"}, {"model": "more"}]});
    let (report, model, tokenizer) = merged(union, &golden(), &home.path().join("out"));
    let of = |place: &str| {
        let files = ["tokenizer.json", "tokenizer_config.json"];
        let read = |name: &str| (name.to_string(), std::fs::read(golden().join(place).join(name)).unwrap());
        Tokenizer::from_files(&files.map(read).into_iter().collect()).unwrap()
    };
    for id in 0..of("base").vocab_size() as u32 {
        assert_eq!(tokenizer.token(id), of("base").token(id));
    }
    for place in ["base", "other", "more"] {
        let one = of(place);
        for token in (0..one.vocab_size() as u32).filter_map(|id| one.token(id)) {
            let ids = tokenizer.encode(&token).unwrap();
            let back: String = ids.iter().filter_map(|id| tokenizer.token(*id)).collect();
            assert_eq!(back, token, "{place}");
        }
    }
    // Tokens of the other vocabulary are found in text, not only listed.
    let longest = of("other");
    let longest = (3..24).filter_map(|id| longest.token(id)).max_by_key(String::len).unwrap();
    let ids = tokenizer.encode(&longest).unwrap();
    assert!(ids.len() < longest.len(), "{longest}: {ids:?}");
    assert!(report.vocabulary.unwrap().models[1].moved > 0);
    assert_eq!(model.config["bos_token_id"], 1);
}

#[test]
fn padding_rows_are_kept_unless_the_recipe_counts_rows() {
    let home = tempfile::tempdir().unwrap();
    let both = |more: Value| {
        let mut value = json!({"merge_method": "linear", "parameters": {"weight": 1}, "base_model": "base",
            "models": [{"model": "base"}, {"model": "more"}]});
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        value
    };
    let (report, model, _) =
        merged(both(json!({"tokenizer_source": "base"})), &golden(), &home.path().join("kept"));
    let n_tokens = 30 - report.vocabulary.as_ref().unwrap().padding_rows;
    assert_eq!(report.vocabulary.unwrap().rows, 30);
    // The other model has no such rows: the base's are kept.
    let base = Checkpoint::open_folder(&golden().join("base")).unwrap();
    let name = "model.embed_tokens.weight";
    let (ours, theirs) = (values_of(model.tensors.as_ref(), name), values_of(base.tensors.as_ref(), name));
    close(row(&ours, 29, 30), row(&theirs, 29, 30), "the last row");
    let padded = json!({"tokenizer": {"source": "base", "pad_to_multiple_of": 4}});
    let (report, ..) = merged(both(padded), &golden(), &home.path().join("padded"));
    assert_eq!(report.vocabulary.unwrap().rows, n_tokens.next_multiple_of(4));
}

#[test]
fn another_models_tokenizer_brings_its_ids_and_template() {
    let home = tempfile::tempdir().unwrap();
    for place in ["base", "other"] {
        let to = home.path().join(place);
        std::fs::create_dir_all(&to).unwrap();
        for entry in std::fs::read_dir(golden().join(place)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
        std::fs::write(to.join("chat_template.jinja"), format!("{{{{ '{place}' }}}}")).unwrap();
    }
    std::fs::write(home.path().join("base/generation_config.json"), "{\"eos_token_id\": [2, 23]}").unwrap();
    let other = home.path().join("other/config.json");
    let text = std::fs::read_to_string(&other).unwrap().replace("\"eos_token_id\": 2", "\"eos_token_id\": 7");
    std::fs::write(&other, text).unwrap();
    let value = json!({"merge_method": "linear", "parameters": {"weight": 1}, "base_model": "base",
        "models": [{"model": "other"}], "tokenizer_source": "other"});
    let (report, model, _) = merged(value, home.path(), &home.path().join("out"));
    assert_eq!(model.config["eos_token_id"], 7);
    assert_eq!(model.side_file("chat_template.jinja").unwrap(), b"{{ 'other' }}");
    let generation: Value =
        serde_json::from_slice(model.side_file("generation_config.json").unwrap()).unwrap();
    assert_eq!(generation["eos_token_id"], 7);
    assert!(report.notes.iter().any(|note| note.contains("eos_token_id was 2, is 7")), "{:?}", report.notes);
}

#[test]
fn what_cannot_be_aligned_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    for (place, rows, seed) in [("a", 9, 1), ("b", 10, 2), ("bare", 9, 3), ("short", 4, 4)] {
        write(&at(place), &config("llama", 12, rows), Dtype::F32, seed);
    }
    std::fs::write(at("a").join("tokenizer.json"), words(9)).unwrap();
    std::fs::write(
        at("b").join("tokenizer.json"),
        words(10).replace("WordLevel", "WordPiece").replace(
            "\"unk_token\"",
            "\"continuing_subword_prefix\":\"##\",\"max_input_chars_per_word\":99,\"unk_token\"",
        ),
    )
    .unwrap();
    std::fs::write(at("short").join("tokenizer.json"), words(9)).unwrap();
    let linear = |models: &[&str], more: Value| {
        let models: Vec<Value> = models.iter().map(|model| json!({"model": model})).collect();
        let mut value = json!({"merge_method": "linear", "parameters": {"weight": 1}, "models": models});
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        value
    };
    let check = |value: Value, wanted: &str| {
        let came = refusal(value, home.path());
        assert!(came.contains(wanted), "wanted {wanted:?}, came {came:?}");
    };
    let union = json!({"tokenizer_source": "union"});
    check(linear(&["a", "b"], union.clone()), "one vocabulary is WordLevel, another is WordPiece");
    check(linear(&["bare", "a"], union.clone()), "bare has no tokenizer to align tokens with");
    check(linear(&["short", "a"], union.clone()), "has 4 rows");
    check(linear(&["a", "b"], json!({"tokenizer_source": "union", "tokenizer": {}})), "not both");
    let tokens = |entry: Value| json!({"tokenizer": {"source": "base", "tokens": {"t3": entry}}});
    check(linear(&["a", "b"], tokens(json!({"source": "c"}))), "model c is not part of the merge");
    check(linear(&["a", "b"], tokens(json!({"force": true}))), "force: wanted a source too");
    check(linear(&["a", "b"], tokens(json!({"source": {"kind": "one"}}))), "came {\"kind\":\"one\"}");
    let row = json!({"source": {"kind": "model_token", "model": "b", "token_id": 10}});
    check(linear(&["a", "b"], tokens(row)), "token_id 10: b has 10 rows");
    let row = json!({"source": {"kind": "model_token", "model": "b"}});
    check(linear(&["a", "b"], tokens(row)), "wanted either token or token_id");
    check(linear(&["a", "b"], tokens(json!({"sauce": 1}))), "unknown field `sauce`");
    let zero = json!({"tokenizer": {"source": "base", "pad_to_multiple_of": 0}});
    check(linear(&["a", "b"], zero), "pad_to_multiple_of: wanted 1 or more");
    check(
        linear(&["a", "b"], json!({"tokenizer_source": "base", "chat_template": "vicuna"})),
        "chat_template vicuna",
    );
    let strange = std::fs::read_to_string(at("a").join("config.json")).unwrap().replace("llama", "strange");
    std::fs::write(at("a").join("config.json"), strange).unwrap();
    check(linear(&["a", "b"], union), "nothing says which tensors have a row for each token");
}
