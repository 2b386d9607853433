//! Importance against a plain implementation in torch (tools/golden/prune.py, prune_bert.py).

use std::path::{Path, PathBuf};

use candle_core::Device;
use luthier_arch::{LoadOptions, Model, load};
use luthier_checkpoint::safetensors::SafetensorsFile;
use luthier_checkpoint::scores::Aggregation;
use luthier_checkpoint::{TensorSource, values};
use luthier_measure::importance::{Calibration, Options, importance};

const OPTIONS: Options =
    Options { window: 10, max_tokens: None, sequence: Aggregation::Mean, batch: Aggregation::L2 };

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden")
}

fn model(name: &str) -> Box<dyn Model> {
    let checkpoint = luthier_arch::open(&golden().join(name)).unwrap();
    load(&checkpoint, &LoadOptions { trainable: false, device: Device::Cpu }).unwrap()
}

fn tensor(file: &SafetensorsFile, name: &str) -> Vec<f32> {
    let info = file.infos().iter().find(|info| info.name == name).unwrap();
    let bytes = file.read(name).unwrap();
    match info.dtype.is_float() {
        true => values::to_f32(name, info.dtype, &bytes).unwrap(),
        false => bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect(),
    }
}

fn check(name: &str) {
    let file = SafetensorsFile::open(&golden().join("prune").join(format!("{name}.safetensors"))).unwrap();
    let ids: Vec<u32> = tensor(&file, "ids").iter().map(|id| *id as u32).collect();
    let model = model(name);
    let calibration = Calibration::of_ids(model.as_ref(), "ids", &ids, OPTIONS.window).unwrap();
    let scores = importance(model.as_ref(), &calibration, &OPTIONS).unwrap();
    let mut checked = 0;
    for info in file.infos().iter().filter(|info| !info.name.contains("ids") && info.name != "pruned_logits")
    {
        let wanted = tensor(&file, &info.name);
        let came = scores.get(&info.name).unwrap_or_else(|| panic!("{name} has no {}", info.name));
        assert_eq!(came.len(), wanted.len(), "{}", info.name);
        for (came, wanted) in came.iter().zip(&wanted) {
            assert!(
                (came - wanted).abs() < 1e-5 * wanted.abs().max(1.0),
                "{name} {}: {came} {wanted}",
                info.name
            );
        }
        checked += 1;
    }
    assert_eq!(checked, scores.len(), "{name}: {:?}", scores.keys());
    // What is asked for again is the same, and nobody looks on any more.
    assert_eq!(importance(model.as_ref(), &calibration, &OPTIONS).unwrap(), scores);
}

#[test]
fn importance_equals_reference() {
    for name in ["llama-tied", "qwen3", "gemma2", "t5", "t5gemma", "bert"] {
        check(name);
    }
}

#[test]
fn layers_that_skip_blocks_are_scored() {
    let model = model("uneven");
    let ids: Vec<u32> = (3..33).collect();
    let calibration = Calibration::of_ids(model.as_ref(), "ids", &ids, 8).unwrap();
    assert_eq!(calibration.tokens, 30);
    let scores = importance(model.as_ref(), &calibration, &OPTIONS).unwrap();
    assert!(scores["block_influence.decoder"].iter().all(|influence| *influence > 0.0));
    assert_eq!(scores["neurons.model.layers.1.mlp.down_proj.weight"].len(), 28);
    assert_eq!(scores["groups.model.layers.2.self_attn.o_proj.weight"].len(), 1);
    assert!(!scores.contains_key("heads.model.layers.3.self_attn.o_proj.weight"));
}

/// Every token goes through k experts, whose shares sum to 1, and whose matrices read it.
#[test]
fn experts_are_scored_by_their_shares() {
    let options = Options { sequence: Aggregation::Mean, batch: Aggregation::Mean, ..OPTIONS };
    for (name, router, experts, projections, sums_to_one) in [
        ("mixtral", "block_sparse_moe.gate", "block_sparse_moe.experts", ["w1", "w2"], true),
        ("qwen2_moe", "mlp.gate", "mlp.experts", ["gate_proj", "down_proj"], false),
    ] {
        let model = model(name);
        let ids: Vec<u32> = (3..33).collect();
        let calibration = Calibration::of_ids(model.as_ref(), "ids", &ids, options.window).unwrap();
        let scores = importance(model.as_ref(), &calibration, &options).unwrap();
        let top_k = model.config()["num_experts_per_tok"].as_u64().unwrap() as f32;
        let layer = (0..8)
            .find(|layer| scores.contains_key(&format!("experts.model.layers.{layer}.{router}.weight")));
        let at = |inner: &str| format!("model.layers.{}.{inner}.weight", layer.unwrap());
        let shares = &scores[&format!("experts.{}", at(router))];
        let sum: f32 = shares.iter().sum();
        assert!(shares.iter().all(|share| *share >= 0.0) && sum <= 1.0 + 1e-5, "{name} {shares:?}");
        assert!(!sums_to_one || (sum - 1.0).abs() < 1e-5, "{name} {shares:?}");
        let energy = |key: &str| scores[key].iter().map(|input| input * input).sum::<f32>();
        let [gate, down] = projections.map(|projection| -> f32 {
            let of = |expert: usize| {
                energy(&format!("inputs.{}", at(&format!("{experts}.{expert}.{projection}"))))
            };
            (0..shares.len()).map(of).sum()
        });
        let wanted = top_k * energy(&format!("inputs.{}", at(router)));
        assert!((gate - wanted).abs() < 1e-4 * wanted, "{name}: {gate} {wanted}");
        assert!(down > 0.0);
        assert!(scores["block_influence.decoder"].iter().all(|influence| *influence > 0.0));
    }
}

#[test]
fn windows_that_do_not_fit_are_refused() {
    let model = model("llama-tied");
    let refused = |ids: &[u32], window| {
        Calibration::of_ids(model.as_ref(), "text", ids, window).err().unwrap().to_string()
    };
    assert!(refused(&[3; 100], 65).contains("context of 64 tokens"));
    assert!(refused(&[3; 100], 1).contains("2 or more"));
    assert!(refused(&[3], 8).contains("text: comes to 1 of the 2 tokens"));
}
