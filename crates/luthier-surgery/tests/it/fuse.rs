//! Adapters fused into their bases: peft's values, the base's types and bytes, llama.cpp's form, refusals.

use std::path::{Path, PathBuf};

use luthier_checkpoint::adapter::Adapter;
use luthier_checkpoint::gguf::Gguf;
use luthier_checkpoint::safetensors::SafetensorsFile;
use luthier_checkpoint::{Checkpoint, Dtype, Lineage, TensorSource, folder};
use luthier_kernels::blocks::BlockType;
use luthier_surgery::extract::{Size, run as extract};
use luthier_surgery::fuse::{Fusion, Options, Report};
use luthier_surgery::quantize::{self, Target};
use luthier_surgery::{Input, convert, extract, lora_gguf};
use serde_json::Map;

use crate::extract::{changed, everything};
use crate::merge::values_of;
use crate::models::{config, open, tokenizer, write};

fn options() -> Options {
    Options { scale: 1.0, dtype: None, requantize: false, text: None, force: false }
}

fn fuse(base: &Input, adapter: &Path, out: &Path, options: &Options) -> luthier_surgery::Result<Report> {
    let adapter = lora_gguf::open(adapter, Some(&base.checkpoint))?;
    Fusion::new(base.clone(), vec![("adapter".to_string(), adapter)], out, options)?.run(
        out,
        options,
        Map::new(),
    )
}

/// A base folder of that type and shape, and an adapter for its matrices in layer 1, its norms there and its embedding.
fn pair(home: &Path, model_type: &str, width: usize, dtype: Dtype) -> (Input, PathBuf) {
    let base = write(&home.join("base"), &config(model_type, width, 33), dtype, 7);
    std::fs::write(base.join("tokenizer.json"), tokenizer(33)).unwrap();
    let tuned = changed(&base, &home.join("tuned"), |name, values| {
        if name.contains("layers.1.") || name == "model.embed_tokens.weight" {
            values.iter_mut().enumerate().for_each(|(at, value)| *value += 0.05 * (at as f32 * 0.37).sin());
        }
    });
    let out = home.join("adapter");
    let all = extract::Options { size: Size::Rank(64), ..everything() };
    extract(&open(&base), &open(&tuned), &out, &all, |_| Ok(Map::new())).unwrap();
    (open(&base), out)
}

#[test]
fn a_fused_folder_has_pefts_values_and_loses_no_tensor() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/adapter");
    let expected = SafetensorsFile::open(&golden.join("expected.safetensors")).unwrap();
    let home = tempfile::tempdir().unwrap();
    for name in ["plain", "patterns", "dora", "embedding", "biases", "conv", "conv_dora", "conv_kept"] {
        let kind = if name.starts_with("conv") { "gpt2" } else { "llama" };
        let base = Input::new(kind, Checkpoint::open_folder(&golden.join(kind)).unwrap());
        let out = home.path().join(name);
        let report = fuse(&base, &golden.join(name), &out, &options()).unwrap();
        let fused = Checkpoint::open_folder(&out).unwrap();
        assert_eq!(fused.config, base.checkpoint.config, "{name}");
        for info in fused.tensors.infos() {
            let key = format!("{name}/{}", info.name);
            let wanted = match expected.infos().iter().any(|info| info.name == key) {
                true => values_of(&expected, &key),
                false => values_of(base.checkpoint.tensors.as_ref(), &info.name),
            };
            for (came, wanted) in values_of(fused.tensors.as_ref(), &info.name).iter().zip(wanted) {
                assert!((came - wanted).abs() <= 1e-6, "{key}: {came} for {wanted}");
            }
        }
        let adapter = Adapter::open(&golden.join(name)).unwrap();
        let inputs = base.checkpoint.tensors.infos().len() + adapter.tensors.infos().len();
        assert_eq!(report.ledger.input_tensors, inputs, "{name}");
        let lineage = Lineage::read(&out).unwrap().unwrap();
        assert_eq!((lineage.parents.len(), lineage.recipe["scale"].as_f64()), (2, Some(1.0)));
    }
}

#[test]
fn scale_0_gives_the_bases_bytes_and_scales_add_up() {
    let home = tempfile::tempdir().unwrap();
    let (base, adapter) = pair(home.path(), "llama", 20, Dtype::BF16);
    let at = |name: &str| home.path().join(name);
    fuse(&base, &adapter, &at("zero"), &Options { scale: 0.0, ..options() }).unwrap();
    let bytes = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(bytes(&at("zero")) == bytes(&at("base")));
    let wide = |scale: f64| Options { scale, dtype: Some(Dtype::F32), ..options() };
    for (name, scale) in [("whole", 1.0), ("half", 0.5), ("back", -1.0)] {
        fuse(&base, &adapter, &at(name), &wide(scale)).unwrap();
    }
    let [whole, half, back] =
        ["whole", "half", "back"].map(|name| Checkpoint::open_folder(&at(name)).unwrap());
    assert!(whole.tensors.infos().iter().all(|info| info.dtype == Dtype::F32));
    for info in whole.tensors.infos() {
        let of = |checkpoint: &Checkpoint| values_of(checkpoint.tensors.as_ref(), &info.name);
        let base = of(&base.checkpoint);
        for (at, base) in base.iter().enumerate() {
            let (whole, half, back) = (of(&whole)[at] - base, of(&half)[at] - base, of(&back)[at] - base);
            assert!((whole - 2.0 * half).abs() < 1e-6 && (whole + back).abs() < 1e-6, "{}", info.name);
        }
        if info.shape.iter().product::<usize>() > 400 {
            break;
        }
    }
}

#[test]
fn a_tied_weight_that_a_file_repeats_changes_with_it() {
    let home = tempfile::tempdir().unwrap();
    let (base, adapter) = pair(home.path(), "gemma2", 20, Dtype::F32);
    let fused = home.path().join("fused");
    fuse(&base, &adapter, &fused, &options()).unwrap();
    let options = luthier_arch::LoadOptions { trainable: false, device: candle_core::Device::Cpu };
    luthier_arch::load(&Checkpoint::open_folder(&fused).unwrap(), &options).unwrap();
    let tuned = Checkpoint::open_folder(&home.path().join("tuned")).unwrap();
    let name = "model.embed_tokens.weight";
    let came = values_of(Checkpoint::open_folder(&fused).unwrap().tensors.as_ref(), name);
    for (came, wanted) in came.iter().zip(values_of(tuned.tensors.as_ref(), name)) {
        assert!((came - wanted).abs() < 1e-6);
    }
}

#[test]
fn a_quantised_file_keeps_its_types_and_the_bytes_that_do_not_change() {
    for (model_type, to) in [("llama", "Q8_0"), ("llama", "Q4_K_M"), ("gemma2", "Q4_1"), ("qwen2", "Q5_0")] {
        let home = tempfile::tempdir().unwrap();
        let (base, adapter) = pair(home.path(), model_type, 64, Dtype::F32);
        let at = |name: &str| home.path().join(name);
        let to = quantize::Options {
            target: Target::parse(to, false).unwrap(),
            imatrix: None,
            requantize: false,
            force: false,
        };
        quantize::run(&base, &at("base.gguf"), &to).unwrap();
        let (base, out) = (open(&at("base.gguf")), at("fused.gguf"));
        let opened = lora_gguf::open(&adapter, None).unwrap();
        let options = Options { requantize: true, ..options() };
        let fusion =
            Fusion::new(base.clone(), vec![("adapter".to_string(), opened)], &out, &options).unwrap();
        assert!(fusion.is_rounded());
        let planned = fusion.plan(&options).unwrap();
        fusion.run(&out, &options, Map::new()).unwrap();
        let (before, after) = (Gguf::open(&at("base.gguf")).unwrap(), Gguf::open(&out).unwrap());
        assert_eq!(before.infos(), after.infos());
        assert_eq!(planned.tensors.len(), after.infos().len());
        for info in before.infos() {
            let is_same = before.read(&info.name).unwrap()[..] == after.read(&info.name).unwrap()[..];
            let is_changed = info.name.starts_with("blk.1.") || info.name == "token_embd.weight";
            assert_eq!(is_same, !is_changed, "{model_type}: {}", info.name);
        }
        // What is measured is what is written, and it is the exact model but for rounding.
        let (written, exact) = (fusion.written(&options).unwrap(), fusion.exact());
        let file = luthier_arch::open(&out).unwrap();
        for info in written.tensors.infos() {
            let of = |checkpoint: &Checkpoint| values_of(checkpoint.tensors.as_ref(), &info.name);
            let (wanted, came) = (of(&exact), of(&file));
            // A norm that the file holds as 1 + w loses a last bit on the way.
            for (written, came) in of(&written).iter().zip(&came) {
                assert!((written - came).abs() <= 1e-6, "{model_type}: {}: {written} and {came}", info.name);
            }
            let error: f32 = wanted.iter().zip(&came).map(|(a, b)| (a - b).powi(2)).sum();
            let size: f32 = wanted.iter().map(|value| value.powi(2)).sum();
            assert!(error <= 0.01 * size, "{model_type}: {} loses {}", info.name, error / size);
        }
        let zero = Options { scale: 0.0, ..options };
        fuse(&base, &adapter, &at("zero.gguf"), &zero).unwrap();
        let zero = Gguf::open(&at("zero.gguf")).unwrap();
        for info in before.infos() {
            assert!(before.read(&info.name).unwrap()[..] == zero.read(&info.name).unwrap()[..]);
        }
        let floats = Options { dtype: Some(Dtype::F16), ..self::options() };
        fuse(&base, &adapter, &at("wide.gguf"), &floats).unwrap();
        let wide = Gguf::open(&at("wide.gguf")).unwrap();
        assert!(wide.infos().iter().all(|info| info.dtype.block().0 == 1));
    }
}

#[test]
fn a_folder_of_bitsandbytes_keeps_its_types_and_the_bytes_that_do_not_change() {
    for (to, double) in [("nf4", false), ("nf4", true), ("fp4", false), ("int8", false)] {
        let home = tempfile::tempdir().unwrap();
        let (base, adapter) = pair(home.path(), "qwen2", 64, Dtype::BF16);
        let at = |name: &str| home.path().join(name);
        let to = quantize::Options {
            target: Target::parse(to, double).unwrap(),
            imatrix: None,
            requantize: false,
            force: false,
        };
        quantize::run(&base, &at("small"), &to).unwrap();
        let (base, out) = (Input::new("small", Checkpoint::open_folder(&at("small")).unwrap()), at("fused"));
        let opened = Adapter::open(&adapter).unwrap();
        let fusion = Fusion::new(base, vec![("adapter".to_string(), opened)], &out, &options()).unwrap();
        let report = fusion.run(&out, &options(), Map::new()).unwrap();
        let (config, before) = folder::open_stored(&at("small")).unwrap();
        let (config_after, after) = folder::open_stored(&out).unwrap();
        assert_eq!(config, config_after);
        assert_eq!(report.tensors, before.infos().len());
        for info in before.infos() {
            let is_same = before.read(&info.name).unwrap()[..] == after.read(&info.name).unwrap()[..];
            let may_change = info.name.contains("layers.1.") || info.name == "model.embed_tokens.weight";
            assert!(is_same || may_change, "{}", info.name);
            assert!(
                !is_same
                    || !may_change
                    || info.name.contains("quant_")
                    || info.name.contains("format")
                    || info.name.contains("nested"),
                "{}",
                info.name
            );
        }
        let (written, exact) = (fusion.written(&options()).unwrap(), fusion.exact());
        let file = Checkpoint::open_folder(&out).unwrap();
        for info in file.tensors.infos() {
            let of = |checkpoint: &Checkpoint| values_of(checkpoint.tensors.as_ref(), &info.name);
            assert_eq!(of(&written), of(&file), "{}", info.name);
            let (wanted, came) = (of(&exact), of(&file));
            let error: f32 = wanted.iter().zip(&came).map(|(a, b)| (a - b).powi(2)).sum();
            let size: f32 = wanted.iter().map(|value| value.powi(2)).sum();
            assert!(error <= 0.03 * size, "{} loses {}", info.name, error / size);
        }
    }
}

#[test]
fn an_adapter_goes_to_llama_cpps_form_and_back() {
    for model_type in ["llama", "qwen2"] {
        let home = tempfile::tempdir().unwrap();
        let base = write(&home.path().join("base"), &config(model_type, 20, 33), Dtype::F32, 7);
        let tuned = changed(&base, &home.path().join("tuned"), |name, values| {
            if name.contains("_proj.weight") || name == "model.embed_tokens.weight" {
                values
                    .iter_mut()
                    .enumerate()
                    .for_each(|(at, value)| *value += 0.05 * (at as f32 * 0.37).sin());
            }
        });
        let at = |name: &str| home.path().join(name);
        let (base, tuned) = (open(&base), open(&tuned));
        extract(&base, &tuned, &at("adapter"), &everything(), |_| Ok(Map::new())).unwrap();
        let options = convert::Options { dtype: None, force: false };
        let report =
            convert::adapter("adapter", &at("adapter"), &base, &at("adapter.gguf"), &options).unwrap();
        let file = Gguf::open(&at("adapter.gguf")).unwrap();
        assert_eq!(report.tensors, file.infos().len());
        let alpha = Adapter::open(&at("adapter")).unwrap().config.alpha;
        assert_eq!(file.get("adapter.lora.alpha").and_then(|value| value.as_f64()), Some(alpha));
        convert::adapter("file", &at("adapter.gguf"), &base, &at("back"), &options).unwrap();
        let (a, b) = (Adapter::open(&at("adapter")).unwrap(), Adapter::open(&at("back")).unwrap());
        let ranks = |adapter: &Adapter| -> Vec<(String, usize)> {
            adapter.modules.iter().map(|(path, module)| (path.clone(), module.rank)).collect()
        };
        assert_eq!(ranks(&a), ranks(&b));
        for (adapter, out) in [("adapter", "one"), ("adapter.gguf", "other"), ("back", "again")] {
            fuse(&base, &at(adapter), &at(out), &self::options()).unwrap();
        }
        // One alpha serves all pairs there: where ranks differ, B holds the rest of the scale, which rounds.
        let read = |name: &str| Checkpoint::open_folder(&at(name)).unwrap();
        for other in ["other", "again"] {
            for info in read("one").tensors.infos() {
                let of = |name: &str| values_of(read(name).tensors.as_ref(), &info.name);
                for (a, b) in of("one").iter().zip(of(other)) {
                    assert!((a - b).abs() <= 1e-6, "{other}: {}: {a} and {b}", info.name);
                }
            }
        }
        let (came, wanted) = (Checkpoint::open_folder(&at("one")).unwrap(), &tuned.checkpoint);
        let name = "model.layers.0.self_attn.q_proj.weight";
        for (came, wanted) in
            values_of(came.tensors.as_ref(), name).iter().zip(values_of(wanted.tensors.as_ref(), name))
        {
            assert!((came - wanted).abs() < 1e-5);
        }
    }
}

#[test]
fn llama_cpps_own_adapter_says_the_same_as_the_folder_that_it_was_made_of() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/adapter");
    let base = Input::new("llama", Checkpoint::open_folder(&golden.join("llama")).unwrap());
    let home = tempfile::tempdir().unwrap();
    fuse(&base, &golden.join("plain"), &home.path().join("folder"), &options()).unwrap();
    fuse(&base, &golden.join("plain.gguf"), &home.path().join("file"), &options()).unwrap();
    let bytes = |name: &str| std::fs::read(home.path().join(name).join("model.safetensors")).unwrap();
    assert!(bytes("folder") == bytes("file"));
    let out = home.path().join("ours.gguf");
    let options = convert::Options { dtype: None, force: false };
    convert::adapter("plain", &golden.join("plain"), &base, &out, &options).unwrap();
    let (ours, theirs) = (Gguf::open(&out).unwrap(), Gguf::open(&golden.join("plain.gguf")).unwrap());
    assert_eq!(ours.infos().len(), theirs.infos().len());
    for info in theirs.infos() {
        assert!(ours.read(&info.name).unwrap()[..] == theirs.read(&info.name).unwrap()[..], "{}", info.name);
    }
    for key in ["general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"] {
        assert_eq!(ours.get(key), theirs.get(key), "{key}");
    }
}

#[test]
fn what_cannot_be_fused_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (base, adapter) = pair(home.path(), "llama", 64, Dtype::F32);
    let at = |name: &str| home.path().join(name);
    let check = |base: &Input, adapter: &Path, out: &str, options: Options, wanted: &str| {
        let came = fuse(base, adapter, &at(out), &options).unwrap_err().to_string();
        assert!(came.contains(wanted), "wanted {wanted:?}, came {came:?}");
        assert!(!at(out).exists());
    };
    let again = || Options { requantize: true, ..options() };
    check(&base, &adapter, "x", again(), "parent is not quantised; leave it out");
    check(&base, &adapter, "x", Options { dtype: Some(Dtype::F16), ..again() }, "asks for another type");
    let small = open(&write(&at("small"), &config("llama", 32, 33), Dtype::F32, 1));
    check(&small, &adapter, "x", options(), "of parent has [32]");
    let shallow = {
        let mut config = config("llama", 64, 33);
        config.insert("num_hidden_layers".to_string(), 1.into());
        open(&write(&at("shallow"), &config, Dtype::F32, 1))
    };
    check(&shallow, &adapter, "x", options(), "which parent does not have");
    let broken = at("broken");
    std::fs::create_dir_all(&broken).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(adapter.join(file), broken.join(file)).unwrap();
    }
    let path = broken.join("adapter_model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let len = bytes.len();
    bytes[len - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    check(&base, &broken, "x", options(), "NaN or infinite");
    let base = at("base.gguf");
    convert::run(&open(&at("base")), &base, &convert::Options { dtype: None, force: false }).unwrap();
    let came = lora_gguf::open(&base, None);
    assert!(came.is_err(), "a model is no adapter");
    let came = convert::adapter(
        "adapter",
        &adapter,
        &open(&base),
        &at("x.gguf"),
        &convert::Options { dtype: None, force: false },
    );
    let came = came.unwrap_err().to_string();
    assert!(came.contains("llama.cpp applies pairs alone"), "{came}");
    assert_eq!(Dtype::Weights(BlockType::F32), Dtype::F32);
}
