//! Folders and GGUF files, there and back.

use std::path::Path;

use luthier_checkpoint::gguf::{GgufArray, GgufValue, GgufWriter};
use luthier_checkpoint::{Dtype, Lineage, TensorSink, TensorSource};
use luthier_surgery::convert::{Options, plan, run};
use luthier_surgery::diff::ValueDifference;

use crate::models::{config, names, open, write};

const OPTIONS: Options = Options { dtype: None, force: false };

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let names = names(folder).into_iter().filter(|name| name != "lineage.json");
    names.map(|name| (name.clone(), std::fs::read(folder.join(name)).unwrap())).collect()
}

#[test]
fn a_folder_comes_back_from_gguf_byte_for_byte() {
    for model_type in ["gemma2", "llama", "qwen2", "qwen3", "mistral"] {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            let home = tempfile::tempdir().unwrap();
            let at = |name: &str| home.path().join(name);
            let mut config = config(model_type, 24, 31);
            config.insert("a_key_of_tomorrow".to_string(), serde_json::json!({"kept": [1, 2.5]}));
            config.insert("torch_dtype".to_string(), "as it was".into());
            write(&at("folder"), &config, dtype, 1);
            run(&open(&at("folder")), &at("there.gguf"), &OPTIONS).unwrap();
            run(&open(&at("there.gguf")), &at("back"), &OPTIONS).unwrap();
            let (before, after) = (files(&at("folder")), files(&at("back")));
            let changed: Vec<_> =
                before.iter().zip(&after).filter(|(a, b)| a != b).map(|(a, _)| &a.0).collect();
            assert!(before == after, "{model_type} {dtype}: {changed:?}");
            // And the file again is the same file.
            run(&open(&at("there.gguf")), &at("again.gguf"), &OPTIONS).unwrap();
            let read = |name: &str| luthier_checkpoint::Gguf::open(&at(name)).unwrap();
            let (there, again) = (read("there.gguf"), read("again.gguf"));
            let content = |gguf: &luthier_checkpoint::Gguf| {
                let own = |key: &str| key != luthier_checkpoint::lineage::LINEAGE_KEY;
                gguf.metadata.iter().filter(|(key, _)| own(key)).cloned().collect::<Vec<_>>()
            };
            assert_eq!(content(&there), content(&again));
        }
    }
}

/// Encoders with all their heads and T5s: what llama.cpp has no place for stands in the file's metadata.
#[test]
fn berts_and_t5s_come_back_from_gguf_byte_for_byte() {
    use serde_json::json;
    let of_class = |class: &str| {
        let mut config = config("bert", 24, 31);
        config.insert("architectures".to_string(), json!([class]));
        config
    };
    let t5 = |model_type: &str, keys: serde_json::Value| {
        let mut config = json!({
            "model_type": model_type, "d_model": 20, "d_kv": 7, "d_ff": 18, "num_layers": 2, "num_decoder_layers": 3,
            "num_heads": 3, "vocab_size": 31, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
        });
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        config.as_object().unwrap().clone()
    };
    let mut untied = of_class("BertForPreTraining");
    untied.insert("tie_word_embeddings".to_string(), json!(false));
    let configs = [
        of_class("BertModel"),
        of_class("BertForMaskedLM"),
        of_class("BertForSequenceClassification"),
        untied,
        t5("t5", json!({})),
        t5("t5", json!({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": false})),
        t5("mt5", json!({"tie_word_embeddings": false})),
    ];
    for config in configs {
        for dtype in [Dtype::F32, Dtype::BF16] {
            let home = tempfile::tempdir().unwrap();
            let at = |name: &str| home.path().join(name);
            write(&at("folder"), &config, dtype, 1);
            std::fs::create_dir(at("folder/1_Pooling")).unwrap();
            std::fs::write(at("folder/1_Pooling/config.json"), r#"{"pooling_mode": "cls"}"#).unwrap();
            let modules = r#"[{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "1_Pooling"}]"#;
            std::fs::write(at("folder/modules.json"), modules).unwrap();
            run(&open(&at("folder")), &at("there.gguf"), &OPTIONS).unwrap();
            let gguf = luthier_checkpoint::Gguf::open(&at("there.gguf")).unwrap();
            let architecture = gguf.get("general.architecture").and_then(|value| value.as_str()).unwrap();
            let pooling = gguf.get(&format!("{architecture}.pooling_type"));
            assert_eq!(pooling.and_then(|value| value.as_u64()), Some(2));
            run(&open(&at("there.gguf")), &at("back"), &OPTIONS).unwrap();
            let flat = |folder: &Path| {
                let mut files: Vec<_> =
                    names(folder).into_iter().filter(|name| name != "lineage.json").collect();
                files.retain(|name| name != "1_Pooling");
                files.push("1_Pooling/config.json".to_string());
                files
                    .into_iter()
                    .map(|name| (std::fs::read(folder.join(&name)).unwrap(), name))
                    .collect::<Vec<_>>()
            };
            let (before, after) = (flat(&at("folder")), flat(&at("back")));
            let changed: Vec<_> =
                before.iter().zip(&after).filter(|(a, b)| a != b).map(|(a, _)| &a.1).collect();
            assert!(before == after, "{config:?} {dtype}: {changed:?}");
            let difference = luthier_surgery::diff::run(
                &open(&at("folder")).checkpoint,
                &open(&at("there.gguf")).checkpoint,
            );
            // The last norm of T5 1.0 is written scaled, which rounds.
            let is_rounding = |one: &ValueDifference| one.relative_l2.is_some_and(|relative| relative < 1e-6);
            assert!(difference.unwrap().changed.iter().all(is_rounding));
        }
    }
}

#[test]
fn vectors_are_f32_in_gguf_and_matrices_keep_their_type() {
    let home = tempfile::tempdir().unwrap();
    let folder = write(&home.path().join("folder"), &config("llama", 24, 31), Dtype::BF16, 1);
    run(&open(&folder), &home.path().join("out.gguf"), &OPTIONS).unwrap();
    let gguf = luthier_checkpoint::Gguf::open(&home.path().join("out.gguf")).unwrap();
    for info in gguf.infos() {
        let wanted = if info.shape.len() == 1 { Dtype::F32 } else { Dtype::BF16 };
        assert_eq!(info.dtype, wanted, "{}", info.name);
    }
    assert_eq!(gguf.get("general.file_type").and_then(|value| value.as_u64()), Some(32));
    assert!(Lineage::read(&home.path().join("out.gguf")).unwrap().is_some());
}

#[test]
fn a_cast_changes_values_to_the_nearest_and_says_so_in_the_config() {
    let home = tempfile::tempdir().unwrap();
    let folder = write(&home.path().join("folder"), &config("llama", 20, 31), Dtype::F32, 1);
    let options = Options { dtype: Some(Dtype::BF16), ..OPTIONS };
    let planned = plan(&open(&folder), &home.path().join("out"), &options).unwrap();
    let report = run(&open(&folder), &home.path().join("out"), &options).unwrap();
    assert_eq!((report.copied_tensors, report.changed_tensors["F32 as BF16"]), (0, planned.tensors.len()));
    let out = luthier_arch::open(&home.path().join("out")).unwrap();
    assert_eq!(out.config["torch_dtype"], "bfloat16");
    let widened = home.path().join("widened");
    run(&open(&home.path().join("out")), &widened, &Options { dtype: Some(Dtype::F32), ..OPTIONS }).unwrap();
    let difference =
        luthier_surgery::diff::run(&open(&folder).checkpoint, &open(&widened).checkpoint).unwrap();
    assert!(!difference.changed.is_empty());
    for changed in &difference.changed {
        assert!(
            changed.relative_l2.unwrap() < 1.0 / 256.0 && changed.cosine.unwrap() > 0.9999,
            "{changed:?}"
        );
    }
}

#[test]
fn an_encoder_decoder_goes_through_gguf() {
    let home = tempfile::tempdir().unwrap();
    let parent = open(&write(&home.path().join("parent"), &config("gemma2", 20, 31), Dtype::BF16, 1));
    let adapted = home.path().join("adapted");
    let options = luthier_surgery::adapt::Options { dtype: None, seed: 1, force: false };
    luthier_surgery::adapt::run(&parent, &parent, &adapted, &options).unwrap();
    run(&open(&adapted), &home.path().join("there.gguf"), &OPTIONS).unwrap();
    run(&open(&home.path().join("there.gguf")), &home.path().join("back"), &OPTIONS).unwrap();
    let (a, b) = (open(&adapted), open(&home.path().join("back")));
    let difference = luthier_surgery::diff::run(&a.checkpoint, &b.checkpoint).unwrap();
    assert!(difference.changed.is_empty() && difference.only_in_b.is_empty(), "{difference:?}");
    assert!(difference.only_in_a.is_empty() && difference.config.is_empty(), "{difference:?}");
}

#[test]
fn values_that_a_type_cannot_hold_are_refused_and_nothing_is_left() {
    let home = tempfile::tempdir().unwrap();
    let folder = write(&home.path().join("folder"), &config("llama", 20, 31), Dtype::F32, 1);
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&1e6f32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let before = names(home.path());
    let options = Options { dtype: Some(Dtype::F16), ..OPTIONS };
    for out in ["out", "out.gguf"] {
        let refused = run(&open(&folder), &home.path().join(out), &options).unwrap_err().to_string();
        assert!(refused.contains("1000000") && refused.starts_with("tensor "), "{refused}");
    }
    let quantised = Options { dtype: Dtype::from_name("Q8_0"), ..OPTIONS };
    let refused = run(&open(&folder), &home.path().join("out"), &quantised).unwrap_err().to_string();
    assert!(refused.contains("Q8_0"), "{refused}");
    assert_eq!(names(home.path()), before);
}

#[test]
fn a_pickle_folder_of_an_unknown_architecture_becomes_safetensors_under_its_own_names() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/torch");
    for (name, config, note) in [
        ("legacy.bin", "{\"hidden_size\": 4}", "names no model_type"),
        ("zip.bin", "{\"model_type\": \"roberta\", \"x\": 1e-12}", "is not known"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        std::fs::copy(golden.join(name), folder.join("pytorch_model.bin")).unwrap();
        std::fs::write(folder.join("config.json"), config).unwrap();
        std::fs::write(folder.join("vocab.txt"), "a\nb\n").unwrap();
        let before = std::fs::read(folder.join("pytorch_model.bin")).unwrap();
        let report = run(&open(&folder), &home.path().join("out"), &OPTIONS).unwrap();
        assert_eq!(report.copied_tensors, report.tensors);
        assert!(report.notes[0].contains(note), "{:?}", report.notes);
        assert_eq!(
            names(&home.path().join("out")),
            ["config.json", "lineage.json", "model.safetensors", "vocab.txt"]
        );
        let difference =
            luthier_surgery::diff::run(&open(&folder).checkpoint, &open(&home.path().join("out")).checkpoint)
                .unwrap();
        assert!(difference.identical, "{difference:?}");
        let lineage = Lineage::read(&home.path().join("out")).unwrap().unwrap();
        assert_eq!(lineage.parents[0].files[1].name, "pytorch_model.bin");
        assert_eq!(std::fs::read(folder.join("pytorch_model.bin")).unwrap(), before);
    }
}

/// The GGUF file again with other metadata.
fn edited(source: &Path, target: &Path, edit: impl Fn(&mut Vec<(String, GgufValue)>)) {
    let gguf = luthier_checkpoint::Gguf::open(source).unwrap();
    let mut metadata = gguf.metadata.clone();
    edit(&mut metadata);
    let mut writer = GgufWriter::create(target, &metadata, gguf.infos()).unwrap();
    for info in gguf.infos() {
        writer.write(&info.name, &gguf.read(&info.name).unwrap()).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn tokenizer_keys_that_contradict_the_carried_tokenizer_are_refused_by_name() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/builtin");
    run(&open(&builtin), &at("there.gguf"), &OPTIONS).unwrap();
    let set = |key: &'static str, value: GgufValue| {
        move |metadata: &mut Vec<(String, GgufValue)>| {
            metadata.retain(|(name, _)| name != key);
            metadata.push((key.to_string(), value.clone()));
        }
    };
    let text = |text: &str| GgufValue::String(text.to_string());
    let gguf = luthier_checkpoint::Gguf::open(&at("there.gguf")).unwrap();
    let mut tokens = gguf.get("tokenizer.ggml.tokens").unwrap().as_strings().unwrap().to_vec();
    tokens.swap(5, 6);
    let tokens = GgufValue::Array(GgufArray::String(tokens));
    let cases: [(&str, GgufValue); 4] = [
        ("tokenizer.chat_template", text("{{ other }}")),
        ("tokenizer.ggml.tokens", tokens),
        ("tokenizer.ggml.eos_token_id", GgufValue::U32(7)),
        ("tokenizer.ggml.add_bos_token", GgufValue::Bool(!adds_bos(&gguf))),
    ];
    for (key, value) in cases {
        edited(&at("there.gguf"), &at("edited.gguf"), set(key, value.clone()));
        let refused = luthier_arch::open(&at("edited.gguf")).err().unwrap().to_string();
        assert!(
            refused.contains(key) && refused.contains("contradicts") && refused.contains("edited.gguf"),
            "{refused}"
        );
        // Without the carried tokenizer, the ordinary keys are what is left to go by.
        edited(&at("edited.gguf"), &at("ordinary.gguf"), |metadata| {
            metadata.retain(|(name, _)| {
                name != "tokenizer.huggingface.json" && !name.starts_with("luthier.file.")
            });
        });
        let opened = luthier_arch::open(&at("ordinary.gguf")).unwrap();
        if key == "tokenizer.chat_template" {
            let template = opened.side_file("chat_template.jinja").map(<[u8]>::to_vec);
            assert_eq!(template.as_deref(), Some(&b"{{ other }}"[..]));
        }
    }
    // The same number in another width, and keys that are not read, contradict nothing.
    let eos = gguf.get("tokenizer.ggml.eos_token_id").unwrap().as_u64().unwrap();
    edited(&at("there.gguf"), &at("edited.gguf"), set("tokenizer.ggml.eos_token_id", GgufValue::U64(eos)));
    luthier_arch::open(&at("edited.gguf")).unwrap();
    edited(&at("there.gguf"), &at("edited.gguf"), set("tokenizer.ggml.of_tomorrow", GgufValue::U64(1)));
    luthier_arch::open(&at("edited.gguf")).unwrap();
}

fn adds_bos(gguf: &luthier_checkpoint::Gguf) -> bool {
    gguf.get("tokenizer.ggml.add_bos_token").and_then(GgufValue::as_bool).unwrap_or(false)
}
