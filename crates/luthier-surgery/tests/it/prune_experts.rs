//! `prune` of models with experts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Result, Tensor};
use luthier_arch::{LoadOptions, Observer, TokenBatch, load};
use luthier_checkpoint::{Dtype, TensorSource, values};
use luthier_surgery::Input;
use luthier_surgery::prune::{Options, Targets, model, plan, run};
use serde_json::json;
use tempfile::tempdir;

use crate::experts::with_experts;
use crate::models::{golden, open, write};
use crate::prune::{assert_close, logits, made_scores, scores};

/// What routers give to each expert, summed over tokens.
#[derive(Default)]
struct Shares(Mutex<BTreeMap<String, Vec<f32>>>);

impl Observer for Shares {
    fn matrix(&self, _: &str, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn norm(&self, _: &str, _: &Tensor, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn shares(&self, weight: &str, shares: &Tensor) -> Result<()> {
        let sums = shares.sum((0, 1))?.to_vec1()?;
        self.0.lock().unwrap().insert(format!("experts.{weight}"), sums);
        Ok(())
    }
}

fn shares(input: &Input, ids: &[u32]) -> BTreeMap<String, Vec<f32>> {
    let model = load(&input.checkpoint, &LoadOptions { trainable: false, device: Device::Cpu }).unwrap();
    let seen = Arc::new(Shares::default());
    model.observe(Some(Arc::clone(&seen) as Arc<dyn Observer>)).unwrap();
    model.hidden(&TokenBatch { ids: ids.to_vec(), rows: 1, segments: None }, None, None).unwrap();
    std::mem::take(&mut *seen.0.lock().unwrap())
}

fn targets(experts: &str) -> Targets {
    Targets { experts: Some(experts.parse().unwrap()), ..Targets::default() }
}

/// The weights of the chosen experts sum to 1 in these two, so that those which nobody chose go without a trace.
#[test]
fn experts_that_no_token_goes_through_go_without_a_trace() {
    for model_type in ["mixtral", "qwen3_moe"] {
        let home = tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let input = open(&write(&at("parent"), &with_experts(model_type, 5), Dtype::F32, 3));
        let shares = shares(&input, &[7]);
        assert_eq!(shares.len(), 3, "{model_type}");
        for (name, shares) in &shares {
            assert!((shares.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{name} {shares:?}");
            assert_eq!(shares.iter().filter(|share| **share > 0.0).count(), 2, "{name} {shares:?}");
        }
        let path = scores(&input, shares, &at("scores.safetensors"));
        let options = Options { targets: targets("2"), scores: Some(path), ..Options::default() };
        for out in ["out", "out.gguf"] {
            let report = run(&input, &at(out), &options).unwrap();
            assert_eq!(report.shape[0].experts, [2, 2, 2]);
            let made = luthier_arch::open(&at(out)).unwrap();
            assert_close(model_type, &logits(&made, &[7], None), &logits(&input.checkpoint, &[7], None));
            let said = ["num_local_experts", "num_experts"].iter().find_map(|key| made.config.get(*key));
            assert_eq!(said, Some(&2.into()), "{model_type}");
        }
        let dropped = luthier_checkpoint::Lineage::read(&at("out")).unwrap().unwrap();
        let text = serde_json::to_string(&dropped).unwrap();
        assert!(text.contains("its expert counts less than others of its layer"), "{text}");
        let planned = plan(&input, &at("other"), &options).unwrap();
        assert_eq!(planned.tensors.len(), luthier_arch::open(&at("out")).unwrap().tensors.infos().len());
    }
}

/// The kept ones keep their values and their order, whatever else is cut.
#[test]
fn experts_go_together_with_layers_and_channels() {
    for name in ["mixtral", "qwen2_moe", "qwen3_moe"] {
        let home = tempdir().unwrap();
        let input = open(&golden(name));
        let before = luthier_arch::sizes::sizes(&input.checkpoint.config).unwrap().stacks[0].clone();
        let path = made_scores(&input, &home.path().join("scores.safetensors"));
        let cut = |targets: Targets| {
            let options = Options { targets, scores: Some(path.clone()), ..Options::default() };
            model(&input, &options).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let layers: usize = before.layers.len() - 1;
        let hidden = before.width - 2;
        let made = cut(Targets {
            layers: Some(layers.to_string().parse().unwrap()),
            hidden: Some(hidden.to_string().parse().unwrap()),
            ..targets("3")
        });
        let after = luthier_arch::sizes::sizes(&made.config).unwrap().stacks[0].clone();
        assert_eq!((after.layers.len(), after.width), (layers, hidden), "{name}");
        assert!(after.layers.iter().any(|layer| layer.experts == Some(3)), "{name}");
        let numbers = logits(&made, &[3, 5, 8], None);
        assert!(numbers.iter().all(|logit| logit.is_finite()), "{name}");
        // Experts alone: rows of routers and whole matrices.
        let made = cut(targets("3"));
        let read = |tensors: &dyn TensorSource, name: &str| {
            let info = tensors.infos().iter().find(|info| info.name == name).unwrap();
            values::to_f32(name, info.dtype, &tensors.read(name).unwrap()).unwrap()
        };
        let old = input.checkpoint.tensors.as_ref();
        let downs = |tensors: &dyn TensorSource| -> Vec<Vec<f32>> {
            let names = tensors.infos().iter().map(|info| info.name.clone());
            let names = names.filter(|name| name.contains(".experts.0.") || name.contains(".experts.2."));
            names.map(|name| read(tensors, &name)).collect()
        };
        let all: Vec<Vec<f32>> = old.infos().iter().map(|info| read(old, &info.name)).collect();
        assert!(!downs(made.tensors.as_ref()).is_empty());
        assert!(downs(made.tensors.as_ref()).iter().all(|values| all.contains(values)), "{name}");
    }
}

#[test]
fn what_experts_cannot_be_cut_to_is_refused() {
    let home = tempdir().unwrap();
    let input = open(&write(&home.path().join("parent"), &with_experts("mixtral", 5), Dtype::F32, 3));
    let path = made_scores(&input, &home.path().join("scores.safetensors"));
    let amounts = |text: &str| Some(text.parse().unwrap());
    for (targets, wanted) in [
        (targets("6"), "--experts 6: wanted at most the 5"),
        (targets("1"), "num_experts_per_tok: 2, but there are only 1 experts"),
        (Targets { ffn: amounts("4"), ..Targets::default() }, "no feed-forward blocks but experts"),
    ] {
        let options = Options { targets, scores: Some(path.clone()), ..Options::default() };
        let error = model(&input, &options).err().unwrap().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let mut config = with_experts("qwen2_moe", 5);
    config.insert("per_layer_config".to_string(), json!({"1": {"skip": ["mlp"]}}));
    let input = open(&write(&home.path().join("skips"), &config, Dtype::F32, 3));
    let error = run(&input, &home.path().join("out.gguf"), &Options::default()).err().unwrap().to_string();
    assert!(error.contains("models with experts all layers are alike"), "{error}");
}
