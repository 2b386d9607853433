//! Merges of models that differ in their heads: one pretrained, its fine-tunes with heads and names of their own.

use std::path::Path;

use luthier_checkpoint::{Checkpoint, Dtype, TensorSink};
use luthier_surgery::merge::{Report, run};
use serde_json::{Value, json};

use crate::merge::{opened, options, recipe, refusal, values_of};
use crate::models::{config, write};

/// `pretrained` with heads for masked tokens and pairs, `plain` with none and no prefix, `classes` with a classifier.
fn write_models(home: &Path) {
    for (name, class, seed) in [
        ("pretrained", "BertForPreTraining", 1),
        ("plain", "BertModel", 2),
        ("classes", "BertForSequenceClassification", 3),
    ] {
        let mut config = config("bert", 24, 31);
        config.insert("architectures".to_string(), json!([class]));
        write(&home.join(name), &config, Dtype::F32, seed);
    }
}

fn linear(unshared: Option<&str>, models: [&str; 3]) -> Value {
    let models = models.map(|model| json!({"model": model, "parameters": {"weight": 1}}));
    json!({"merge_method": "linear", "base_model": "pretrained", "models": models, "unshared": unshared})
}

fn merged(home: &Path, value: Value, out: &str) -> (Checkpoint, Report) {
    let recipe = recipe(value);
    let report = run(&recipe, &opened(&recipe, home), &home.join(out), &options()).unwrap();
    (luthier_arch::open(&home.join(out)).unwrap(), report)
}

fn reasons(report: &Report) -> Value {
    serde_json::to_value(&report.ledger).unwrap()["dropped"].clone()
}

fn has(model: &Checkpoint, name: &str) -> bool {
    model.tensors.infos().iter().any(|info| info.name == name)
}

#[test]
fn heads_that_only_one_model_has_are_refused_kept_or_left_out() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    write_models(home);
    let order = ["pretrained", "plain", "classes"];
    let said = refusal(linear(None, order), home);
    assert!(
        said.contains("classifier.weight: is in classes, but not in pretrained") && said.contains("unshared"),
        "{said}"
    );
    let place = |name: &str| Checkpoint::open_folder(&home.join(name)).unwrap();
    let same = |a: &Checkpoint, b: &Checkpoint, name: &str, there: &str| {
        assert_eq!(values_of(a.tensors.as_ref(), name), values_of(b.tensors.as_ref(), there), "{name}");
    };
    let pretrained = place("pretrained");
    // Of the base, wherever it stands in the list.
    for (at, order) in [order, ["classes", "plain", "pretrained"]].into_iter().enumerate() {
        let (base, report) = merged(home, linear(Some("base"), order), &format!("base-{at}"));
        let names = |model: &Checkpoint| -> Vec<String> {
            model.tensors.infos().iter().map(|info| info.name.clone()).collect()
        };
        assert_eq!(names(&base), names(&pretrained));
        same(&base, &pretrained, "cls.seq_relationship.bias", "cls.seq_relationship.bias");
        same(&base, &pretrained, "cls.predictions.bias", "cls.predictions.bias");
        let mean = |name: &str| -> Vec<f32> {
            let own = |model: &str, name: &str| values_of(place(model).tensors.as_ref(), name);
            let (a, b, c) = (
                own("pretrained", name),
                own("plain", name.trim_start_matches("bert.")),
                own("classes", name),
            );
            a.iter().zip(&b).zip(&c).map(|((a, b), c)| (a + b + c) / 3.0).collect()
        };
        for name in ["bert.pooler.dense.weight", "bert.encoder.layer.1.output.LayerNorm.bias"] {
            for (came, wanted) in values_of(base.tensors.as_ref(), name).iter().zip(mean(name)) {
                assert!((came - wanted).abs() < 1e-6, "{name}: {came}, {wanted}");
            }
        }
        let dropped = reasons(&report);
        assert!(dropped.to_string().contains("not all models have it"), "{dropped}");
        assert!(!dropped.to_string().contains("slices"), "{dropped}");
    }
    let (keep, _) = merged(home, linear(Some("keep"), order), "keep");
    same(&keep, &place("classes"), "classifier.weight", "classifier.weight");
    same(
        &keep,
        &pretrained,
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.weight",
    );
    let (drop, _) = merged(home, linear(Some("drop"), order), "drop");
    assert!(!has(&drop, "classifier.weight") && !has(&drop, "cls.seq_relationship.weight"));
    assert!(has(&drop, "bert.pooler.dense.weight"));
    // Where the base has no prefix, what others bring goes by its names.
    let other = json!({"merge_method": "ties", "base_model": "plain", "unshared": "keep",
        "parameters": {"weight": 1, "density": 0.5}, "models": [{"model": "pretrained"}, {"model": "classes"}]});
    let (other, _) = merged(home, other, "other");
    assert!(has(&other, "pooler.dense.weight") && !has(&other, "bert.pooler.dense.weight"));
    same(&other, &pretrained, "cls.predictions.bias", "cls.predictions.bias");
    same(&other, &place("classes"), "classifier.bias", "classifier.bias");
}

#[test]
fn a_pooler_that_the_base_lacks_gets_the_bases_names() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    write_models(home);
    let folder = home.join("bare");
    let mut config = config("bert", 24, 31);
    config.insert("architectures".to_string(), json!(["BertModel"]));
    write(&folder, &config, Dtype::F32, 4);
    // Without the pooler.
    let source = Checkpoint::open_folder(&folder).unwrap();
    let left: Vec<_> =
        source.tensors.infos().iter().filter(|info| !info.name.starts_with("pooler")).cloned().collect();
    let path = home.join("without");
    std::fs::create_dir(&path).unwrap();
    let metadata = luthier_checkpoint::safetensors::SafetensorsWriter::pt_metadata();
    let mut writer =
        luthier_checkpoint::safetensors::SafetensorsWriter::create(&path, &left, &metadata, None).unwrap();
    for info in &left {
        use luthier_checkpoint::TensorSink;
        writer.write(&info.name, &source.tensors.read(&info.name).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    std::fs::copy(folder.join("config.json"), path.join("config.json")).unwrap();
    let recipe = |unshared: &str| {
        json!({"merge_method": "linear", "base_model": "without", "unshared": unshared,
            "parameters": {"weight": 1}, "models": [{"model": "without"}, {"model": "classes"}]})
    };
    let (model, _) = merged(home, recipe("keep"), "keep");
    let classes = Checkpoint::open_folder(&home.join("classes")).unwrap();
    let pooler = values_of(model.tensors.as_ref(), "pooler.dense.weight");
    assert_eq!(pooler, values_of(classes.tensors.as_ref(), "bert.pooler.dense.weight"));
    let (model, _) = merged(home, recipe("base"), "base");
    assert!(!has(&model, "pooler.dense.weight") && !has(&model, "classifier.weight"));
}

#[test]
fn biases_that_only_one_model_has_are_no_slices_left_out() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    write(&home.join("plain"), &config("llama", 12, 9), Dtype::F32, 1);
    let mut biased = config("llama", 12, 9);
    biased.insert("attention_bias".to_string(), json!(true));
    write(&home.join("biased"), &biased, Dtype::F32, 2);
    let recipe = |models: [&str; 2], unshared: &str| {
        let models = models.map(|model| json!({"model": model}));
        json!({"merge_method": "linear", "models": models, "unshared": unshared, "parameters": {"weight": 1}})
    };
    let name = "model.layers.0.self_attn.q_proj.bias";
    for order in [["plain", "biased"], ["biased", "plain"]] {
        let said = refusal(recipe(order, "refuse"), home);
        assert!(said.contains(&format!("{name}: is in biased, but not in plain")), "{said}");
    }
    let said = refusal(recipe(["plain", "biased"], "keep"), home);
    assert!(said.contains("the config of plain has no place for it"), "{said}");
    let (base, report) = merged(home, recipe(["plain", "biased"], "base"), "base");
    assert!(!has(&base, name) && reasons(&report).to_string().contains("not all models have it"));
    let (base, _) = merged(home, recipe(["biased", "plain"], "base"), "kept");
    assert!(has(&base, name));
}
