//! A decoder-only model becomes an encoder-decoder.

use luthier_checkpoint::{Dtype, Lineage};
use luthier_surgery::adapt::{Options, plan, run};

use crate::models::{config, names, open, tokenizer, write};

const OPTIONS: Options = Options { dtype: None, seed: 7, force: false };

#[test]
fn silent_cross_attention_leaves_the_parents_logits_in_every_family() {
    for model_type in ["gemma2", "llama", "mistral", "qwen2", "qwen3"] {
        let home = tempfile::tempdir().unwrap();
        let parent = open(&write(&home.path().join("parent"), &config(model_type, 20, 31), Dtype::F32, 1));
        let report = run(&parent, &parent, &home.path().join("out"), &OPTIONS).unwrap();
        assert!(report.silenced_max_abs_difference <= 1e-5, "{model_type}: {report:?}");
        assert_eq!(report.fresh_tensors, 0, "{model_type}");
        let out = luthier_arch::open(&home.path().join("out")).unwrap();
        let planned = plan(&parent, &parent, home.path(), &OPTIONS).unwrap();
        assert_eq!(planned.tensors.len(), out.tensors.infos().len(), "{model_type}");
        let lineage = Lineage::read(&home.path().join("out")).unwrap().unwrap();
        assert_eq!(lineage.ledger.output_tensors, lineage.ledger.copied, "{model_type}");
        assert!(lineage.ledger.dropped.is_empty(), "{model_type}");
        assert_eq!(lineage.seed, Some(7));
    }
}

#[test]
fn cross_attention_is_the_self_attention_of_the_decoder() {
    let home = tempfile::tempdir().unwrap();
    let parent = open(&write(&home.path().join("parent"), &config("gemma2", 20, 31), Dtype::BF16, 1));
    run(&parent, &parent, &home.path().join("out"), &OPTIONS).unwrap();
    let out = luthier_arch::open(&home.path().join("out")).unwrap();
    let read = |name: &str| out.tensors.read(name).unwrap().to_vec();
    let source = |name: &str| parent.checkpoint.tensors.read(name).unwrap().to_vec();
    for projection in ["q_proj", "k_proj", "v_proj", "o_proj"] {
        let wanted = source(&format!("model.layers.1.self_attn.{projection}.weight"));
        assert_eq!(read(&format!("model.decoder.layers.1.cross_attn.{projection}.weight")), wanted);
        assert_eq!(read(&format!("model.encoder.layers.1.self_attn.{projection}.weight")), wanted);
    }
    assert_eq!(read("model.decoder.norm.weight"), source("model.norm.weight"));
    assert_eq!(
        read("model.decoder.layers.2.pre_cross_attn_layernorm.weight"),
        source("model.layers.2.input_layernorm.weight")
    );
    assert!(out.tensors.infos().iter().all(|info| info.dtype == Dtype::BF16));
    assert_eq!(out.config["torch_dtype"], "bfloat16");
    let generation = String::from_utf8(out.side_file("generation_config.json").unwrap().to_vec()).unwrap();
    assert!(
        generation.contains("\"decoder_start_token_id\": 1") && generation.contains("0.5"),
        "{generation}"
    );
    assert!(out.side_file("README.md").is_none());
}

#[test]
fn parents_of_different_width_get_fresh_cross_attention_that_depends_on_the_seed() {
    let home = tempfile::tempdir().unwrap();
    let encoder = open(&write(&home.path().join("large"), &config("llama", 28, 31), Dtype::F32, 1));
    let decoder = open(&write(&home.path().join("small"), &config("llama", 20, 31), Dtype::F32, 2));
    let report = run(&encoder, &decoder, &home.path().join("a"), &OPTIONS).unwrap();
    assert_eq!(report.fresh_tensors, 3 * 4);
    assert!(report.notes.iter().any(|note| note.contains("train it alone first")), "{report:?}");
    run(&encoder, &decoder, &home.path().join("b"), &OPTIONS).unwrap();
    run(&encoder, &decoder, &home.path().join("c"), &Options { seed: 8, ..OPTIONS }).unwrap();
    let bytes = |name: &str| std::fs::read(home.path().join(name).join("model.safetensors")).unwrap();
    assert_eq!(bytes("a"), bytes("b"));
    assert_ne!(bytes("a"), bytes("c"));
}

#[test]
fn two_parents_of_one_size_keep_their_own_embeddings() {
    let home = tempfile::tempdir().unwrap();
    let encoder = open(&write(&home.path().join("one"), &config("gemma2", 20, 31), Dtype::F32, 1));
    let decoder = open(&write(&home.path().join("two"), &config("gemma2", 20, 31), Dtype::F32, 2));
    run(&encoder, &decoder, &home.path().join("out"), &OPTIONS).unwrap();
    let out = luthier_arch::open(&home.path().join("out")).unwrap();
    for (side, parent) in [("encoder", &encoder), ("decoder", &decoder)] {
        let came = out.tensors.read(&format!("model.{side}.embed_tokens.weight")).unwrap();
        assert_eq!(
            came[..],
            parent.checkpoint.tensors.read("model.embed_tokens.weight").unwrap()[..],
            "{side}"
        );
    }
}

#[test]
fn a_cast_is_checked_against_the_cast_parent() {
    let home = tempfile::tempdir().unwrap();
    let parent = open(&write(&home.path().join("parent"), &config("qwen3", 20, 31), Dtype::F32, 1));
    let options = Options { dtype: Some(Dtype::BF16), ..OPTIONS };
    let report = run(&parent, &parent, &home.path().join("out"), &options).unwrap();
    assert!(report.silenced_max_abs_difference <= 1e-5);
}

fn refusal(
    home: &std::path::Path,
    encoder: &luthier_surgery::Input,
    decoder: &luthier_surgery::Input,
) -> String {
    let before = names(home);
    let refused = run(encoder, decoder, &home.join("out"), &OPTIONS).unwrap_err().to_string();
    assert_eq!(names(home), before, "something is left behind");
    refused
}

#[test]
fn vocabularies_that_differ_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let one = open(&write(&home.path().join("one"), &config("llama", 20, 31), Dtype::F32, 1));
    let two = open(&write(&home.path().join("two"), &config("llama", 20, 33), Dtype::F32, 2));
    let refused = refusal(home.path(), &one, &two);
    assert!(
        refused.contains("vocabulary size") && refused.contains("31") && refused.contains("33"),
        "{refused}"
    );
    let three = write(&home.path().join("three"), &config("llama", 20, 31), Dtype::F32, 3);
    std::fs::write(three.join("tokenizer.json"), tokenizer(30)).unwrap();
    let four = write(&home.path().join("four"), &config("llama", 20, 31), Dtype::F32, 3);
    std::fs::write(four.join("tokenizer.json"), tokenizer(30).replace("\"t7\"", "\"other\"")).unwrap();
    let refused = refusal(home.path(), &open(&three), &open(&four));
    assert!(refused.contains("token 7") && refused.contains("other"), "{refused}");
}

#[test]
fn what_cannot_be_adapted_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let sound = write(&home.path().join("sound"), &config("llama", 20, 31), Dtype::F32, 1);
    let parent = open(&sound);
    run(&parent, &parent, &home.path().join("first"), &OPTIONS).unwrap();
    let adapted = open(&home.path().join("first"));
    assert!(refusal(home.path(), &adapted, &adapted).contains("encoder-decoder"));
    let existing = run(&parent, &parent, &home.path().join("first"), &OPTIONS).unwrap_err().to_string();
    assert!(existing.contains("--force"), "{existing}");
    let inside = run(&parent, &parent, &sound.join("out"), &OPTIONS).unwrap_err().to_string();
    assert!(inside.contains("lies inside the input"), "{inside}");

    let mut strange = parent.clone();
    strange.checkpoint.config.insert("model_type".to_string(), "sphinx".into());
    assert!(refusal(home.path(), &strange, &strange).contains("sphinx"));
    let mut contradicted = parent.clone();
    contradicted.checkpoint.config.insert("intermediate_size".to_string(), 24.into());
    let refused = refusal(home.path(), &contradicted, &contradicted);
    assert!(refused.contains("proj") && refused.contains("24"), "{refused}");
    std::fs::write(sound.join("tokenizer.json"), tokenizer(32)).unwrap();
    let refused = refusal(home.path(), &open(&sound), &open(&sound));
    assert!(refused.contains("31 rows"), "{refused}");
}

#[test]
fn weights_that_are_no_numbers_are_refused_and_named() {
    let home = tempfile::tempdir().unwrap();
    let folder = write(&home.path().join("parent"), &config("llama", 20, 31), Dtype::F32, 1);
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let refused = refusal(home.path(), &open(&folder), &open(&folder));
    assert!(refused.starts_with("tensor ") && refused.contains("NaN"), "{refused}");
}
