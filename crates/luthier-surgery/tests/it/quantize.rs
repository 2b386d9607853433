//! Quantised models: types, bytes, importance weights, refusals, the record.

use std::path::{Path, PathBuf};

use luthier_checkpoint::gguf::{GgufArray, GgufValue, GgufWriter};
use luthier_checkpoint::lineage::Parent;
use luthier_checkpoint::{Dtype, Gguf, Lineage, TensorInfo, TensorSink, TensorSource, values};
use luthier_surgery::quantize::{Options, Target, plan, run};
use serde_json::{Map, Value, json};

use crate::models::{config, names, open, write};

fn options(to: &str) -> Options {
    Options { target: Target::parse(to, false).unwrap(), imatrix: None, requantize: false, force: false }
}

/// Rows of 256 and of 288, so that blocks of 256 fit some tensors only.
fn wide_config() -> Map<String, Value> {
    let mut config = config("llama", 256, 40);
    config.insert("intermediate_size".to_string(), json!(288));
    config
}

fn model(home: &Path) -> PathBuf {
    write(&home.join("folder"), &wide_config(), Dtype::F32, 7)
}

#[test]
fn every_type_stays_near_the_source_and_opens() {
    let home = tempfile::tempdir().unwrap();
    let input = open(&model(home.path()));
    // Weights lie between -0.2 and 0.2: one step of each mixture's coarsest type; the scales are rounded too.
    for (to, bound) in [
        ("F16", 1e-4),
        ("BF16", 1e-3),
        ("Q8_0", 0.001),
        ("Q6_K", 0.0076),
        ("Q5_K_M", 0.0155),
        ("Q5_K_S", 0.0155),
        ("Q5_1", 0.011),
        ("Q5_0", 0.016),
        ("Q4_K_M", 0.032),
        ("Q4_K_S", 0.032),
        ("Q4_1", 0.02),
        ("Q4_0", 0.03),
        ("Q3_K_L", 0.07),
        ("Q3_K_M", 0.07),
        ("Q3_K_S", 0.07),
        ("Q2_K", 0.16),
        ("TQ1_0", 0.21),
        ("TQ2_0", 0.21),
    ] {
        let out = home.path().join(format!("{to}.gguf"));
        let planned = plan(&input, &out, &options(to)).unwrap();
        let report = run(&input, &out, &options(to)).unwrap();
        let came = open(&out);
        luthier_arch::check_headers(&came.checkpoint).unwrap();
        let gguf = Gguf::open(&out).unwrap();
        let types: Vec<(String, String)> =
            gguf.infos().iter().map(|info| (info.name.clone(), info.dtype.name().to_string())).collect();
        assert_eq!(
            types,
            planned.tensors.iter().map(|t| (t.name.clone(), t.dtype.clone())).collect::<Vec<_>>()
        );
        assert_eq!(planned.size_bytes, report.size_bytes);
        for info in input.checkpoint.tensors.infos() {
            let wanted =
                values::to_f32(&info.name, info.dtype, &input.checkpoint.tensors.read(&info.name).unwrap());
            let stored = came.checkpoint.tensors.infos().iter().find(|came| came.name == info.name).unwrap();
            let bytes = came.checkpoint.tensors.read(&info.name).unwrap();
            let came = values::to_f32(&info.name, stored.dtype, &bytes).unwrap();
            for (a, b) in wanted.unwrap().iter().zip(&came) {
                assert!((a - b).abs() <= bound, "{to}, {}: {a} became {b}", info.name);
            }
        }
    }
}

#[test]
fn a_file_in_the_types_it_has_is_copied() {
    let home = tempfile::tempdir().unwrap();
    let (first, second) = (home.path().join("first.gguf"), home.path().join("second.gguf"));
    run(&open(&model(home.path())), &first, &options("Q4_K_M")).unwrap();
    let report = run(&open(&first), &second, &options("Q4_K_M")).unwrap();
    assert_eq!(report.copied_tensors, report.tensors);
    let (first, second) = (Gguf::open(&first).unwrap(), Gguf::open(&second).unwrap());
    assert_eq!(first.infos(), second.infos());
    for info in first.infos() {
        assert!(first.read(&info.name).unwrap()[..] == second.read(&info.name).unwrap()[..]);
    }
}

#[test]
fn a_folder_and_its_gguf_file_quantise_to_the_same_weights() {
    let home = tempfile::tempdir().unwrap();
    let input = open(&model(home.path()));
    let at = |name: &str| home.path().join(name);
    let plain = luthier_surgery::convert::Options { dtype: None, force: false };
    luthier_surgery::convert::run(&input, &at("plain.gguf"), &plain).unwrap();
    run(&input, &at("a.gguf"), &options("Q4_K_S")).unwrap();
    run(&open(&at("plain.gguf")), &at("b.gguf"), &options("Q4_K_S")).unwrap();
    let (a, b) = (Gguf::open(&at("a.gguf")).unwrap(), Gguf::open(&at("b.gguf")).unwrap());
    assert_eq!(a.infos(), b.infos());
    for info in a.infos() {
        assert!(a.read(&info.name).unwrap()[..] == b.read(&info.name).unwrap()[..], "{}", info.name);
    }
    assert_eq!(a.get("general.file_type").unwrap().as_u64(), Some(14));
}

#[test]
fn the_record_names_its_parents_by_their_hashes() {
    let home = tempfile::tempdir().unwrap();
    let folder = model(home.path());
    let out = home.path().join("out.gguf");
    run(&open(&folder), &out, &options("Q8_0")).unwrap();
    let lineage = Lineage::read(&out).unwrap().unwrap();
    assert_eq!(lineage.parents, [Parent::of_place("parent", &folder).unwrap()]);
    assert_eq!((lineage.verb.as_str(), &lineage.recipe["to"]), ("quantize", &json!("Q8_0")));
    let infos = Gguf::open(&out).unwrap().infos().len();
    assert_eq!(lineage.ledger.output_tensors, infos);
}

#[test]
fn quantised_sources_want_leave() {
    let home = tempfile::tempdir().unwrap();
    let first = home.path().join("first.gguf");
    run(&open(&model(home.path())), &first, &options("Q8_0")).unwrap();
    let before = names(home.path());
    let second = home.path().join("second.gguf");
    let refused = run(&open(&first), &second, &options("Q4_0")).unwrap_err().to_string();
    assert!(refused.contains("is Q8_0 already") && refused.contains("--requantize"), "{refused}");
    assert_eq!(names(home.path()), before);
    let report = run(&open(&first), &second, &Options { requantize: true, ..options("Q4_0") }).unwrap();
    assert!(report.notes.iter().any(|note| note.contains("a second time")), "{:?}", report.notes);
}

#[test]
fn damaged_weights_are_named_and_nothing_is_left() {
    for (bad, said) in
        [(f32::NAN, "NaN or infinite"), (f32::NEG_INFINITY, "NaN or infinite"), (1e30, "too large")]
    {
        let home = tempfile::tempdir().unwrap();
        let folder = model(home.path());
        let path = folder.join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&bad.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let before = names(home.path());
        for to in ["Q8_0", "Q4_K_M", "F16"] {
            let out = home.path().join("out.gguf");
            let refused = run(&open(&folder), &out, &options(to)).unwrap_err().to_string();
            // The last tensor of the file is a vector here or a matrix; its name begins the message either way.
            assert!(refused.starts_with("tensor "), "{refused}");
            assert!(refused.contains(said) || bad == 1e30, "{refused}");
        }
        assert_eq!(names(home.path()), before);
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
}

/// Importance weights for one tensor in the older form.
fn binary(name: &str, weights: &[f32], calls: i32) -> Vec<u8> {
    let mut bytes = 1i32.to_le_bytes().to_vec();
    bytes.extend((name.len() as i32).to_le_bytes());
    bytes.extend(name.as_bytes());
    bytes.extend(calls.to_le_bytes());
    bytes.extend((weights.len() as i32).to_le_bytes());
    weights.iter().for_each(|weight| bytes.extend((weight * calls as f32).to_le_bytes()));
    bytes.extend(3i32.to_le_bytes());
    bytes.extend(8i32.to_le_bytes());
    bytes.extend(b"data.txt");
    bytes
}

fn gguf_imatrix(path: &Path, name: &str, weights: &[f32], count: f32) {
    let metadata = [
        ("general.type".to_string(), GgufValue::String("imatrix".to_string())),
        ("imatrix.datasets".to_string(), GgufValue::Array(GgufArray::String(vec!["data.txt".to_string()]))),
        ("imatrix.chunk_count".to_string(), GgufValue::U32(3)),
        ("imatrix.chunk_size".to_string(), GgufValue::U32(512)),
    ];
    let info = |ending: &str, shape: Vec<usize>| TensorInfo {
        name: format!("{name}.{ending}"),
        dtype: Dtype::F32,
        shape,
    };
    let infos = [info("in_sum2", vec![1, weights.len()]), info("counts", vec![1, 1])];
    let mut writer = GgufWriter::create(path, &metadata, &infos).unwrap();
    let bytes: Vec<u8> = weights.iter().flat_map(|weight| (weight * count).to_le_bytes()).collect();
    writer.write(&infos[0].name, &bytes).unwrap();
    writer.write(&infos[1].name, &count.to_le_bytes()).unwrap();
    writer.finish().unwrap();
}

#[test]
fn importance_weights_of_both_forms_change_the_bytes_alike() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let input = open(&model(home.path()));
    const NAME: &str = "blk.1.attn_q.weight";
    let weights: Vec<f32> = (0..256).map(|at| if at % 7 == 0 { 64.0 } else { 0.25 }).collect();
    std::fs::write(at("old.dat"), binary(NAME, &weights, 4)).unwrap();
    gguf_imatrix(&at("new.gguf"), NAME, &weights, 4.0);
    run(&input, &at("plain.gguf"), &options("Q4_K_S")).unwrap();
    let mut written = Vec::new();
    for imatrix in ["old.dat", "new.gguf"] {
        let out = at(&format!("from-{imatrix}.out.gguf"));
        let options = Options { imatrix: Some(at(imatrix)), ..options("Q4_K_S") };
        let report = run(&input, &out, &options).unwrap();
        assert!(report.notes.iter().any(|note| note.contains("no importance weights")), "{:?}", report.notes);
        let gguf = Gguf::open(&out).unwrap();
        assert_eq!(gguf.get("quantize.imatrix.chunks_count").unwrap().as_u64(), Some(3));
        assert_eq!(gguf.get("quantize.imatrix.dataset").unwrap().as_str(), Some("data.txt"));
        written.push(gguf);
    }
    let plain = Gguf::open(&at("plain.gguf")).unwrap();
    for info in plain.infos() {
        let read = |gguf: &Gguf| gguf.read(&info.name).unwrap().to_vec();
        assert!(read(&written[0]) == read(&written[1]), "{}", info.name);
        assert_eq!(read(&written[0]) != read(&plain), info.name == NAME, "{}", info.name);
    }
}

#[test]
fn importance_weights_that_do_not_fit_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let input = open(&model(home.path()));
    let path = home.path().join("imatrix.dat");
    let good = binary("blk.1.attn_q.weight", &[1.0; 256], 4);
    let mut cases = vec![
        (binary("blk.1.attn_q.weight", &[1.0; 128], 4), "wanted 256 weights"),
        (binary("another", &[1.0; 256], 4), "no entry belongs"),
        (binary("blk.1.attn_q.weight", &[f32::NAN; 256], 4), "weight 0 is NaN"),
        (binary("blk.1.attn_q.weight", &[-1.0; 256], 4), "weight 0 is -1"),
        (vec![], "holds no entries"),
        ((-5i32).to_le_bytes().to_vec(), "holds no entries"),
        (i32::MAX.to_le_bytes().to_vec(), "ends inside entry 1"),
    ];
    for cut in [6, 20, 40, 300] {
        cases.push((good[..cut].to_vec(), "ends inside entry"));
    }
    let before = names(home.path()).len();
    for (bytes, said) in cases {
        std::fs::write(&path, &bytes).unwrap();
        let options = Options { imatrix: Some(path.clone()), ..options("Q4_K_S") };
        let refused = run(&input, &home.path().join("out.gguf"), &options).unwrap_err().to_string();
        assert!(refused.contains(said) && refused.contains("imatrix.dat"), "{refused}");
    }
    assert_eq!(names(home.path()).len(), before + 1);
    let refused = run(&input, &home.path().join("out.gguf"), &options("Q2_K_S")).unwrap_err().to_string();
    assert!(refused.contains("--imatrix"), "{refused}");
    let refused = run(&input, &home.path().join("out"), &options("Q8_0")).unwrap_err().to_string();
    assert!(refused.contains(".gguf"), "{refused}");
    assert!(Target::parse("Q9_9", false).unwrap_err().to_string().contains("Q4_K_M"));
}

fn bits_and_bytes(to: &str, double: bool) -> Options {
    Options { target: Target::parse(to, double).unwrap(), ..options("Q8_0") }
}

#[test]
fn folders_of_bitsandbytes_types_open_as_plain_models_near_the_source() {
    for (to, double, bound) in
        [("nf4", false, 0.032), ("fp4", false, 0.035), ("nf4", true, 0.035), ("int8", false, 0.001)]
    {
        let home = tempfile::tempdir().unwrap();
        let folder = model(home.path());
        let input = open(&folder);
        let out = home.path().join("out");
        let options = bits_and_bytes(to, double);
        let planned = plan(&input, &out, &options).unwrap();
        let report = run(&input, &out, &options).unwrap();
        assert_eq!(planned.tensors.len(), report.tensors);
        assert!(
            planned.size_bytes.abs_diff(report.size_bytes) < 400,
            "{} {}",
            planned.size_bytes,
            report.size_bytes
        );
        // Embedding and head are not rounded.
        assert_eq!(report.copied_tensors, 3 + 2 * 3);
        let config: Map<String, Value> =
            serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["quantization_config"]["load_in_8bit"], json!(to == "int8"));
        assert_eq!(config["quantization_config"]["bnb_4bit_use_double_quant"], json!(double));
        let came = open(&out);
        assert_eq!(came.checkpoint.config, input.checkpoint.config);
        assert_eq!(came.checkpoint.tensors.infos().len(), input.checkpoint.tensors.infos().len());
        for info in input.checkpoint.tensors.infos() {
            let read = |input: &luthier_surgery::Input| {
                values::to_f32(&info.name, Dtype::F32, &input.checkpoint.tensors.read(&info.name).unwrap())
            };
            let mut largest = 0f32;
            for (a, b) in read(&input).unwrap().iter().zip(&read(&came).unwrap()) {
                largest = largest.max((a - b).abs());
            }
            assert!(largest <= bound, "{to}, {}: off by {largest}", info.name);
            let is_kept = info.shape.len() < 2 || info.name.contains("embed") || info.name.contains("head");
            assert_eq!(largest == 0.0, is_kept, "{to}, {}", info.name);
        }
        let lineage = Lineage::read(&out).unwrap().unwrap();
        assert_eq!(lineage.parents, [Parent::of_place("parent", &folder).unwrap()]);
        // What was read as floats is rounded to the same values again.
        let again = home.path().join("again");
        run(&came, &again, &options).unwrap();
        let again = open(&again);
        for info in came.checkpoint.tensors.infos().iter().filter(|_| to != "int8" && !double) {
            let read = |input: &luthier_surgery::Input| {
                values::to_f32(&info.name, Dtype::F32, &input.checkpoint.tensors.read(&info.name).unwrap())
            };
            assert!(read(&came).unwrap() == read(&again).unwrap(), "{to}, {}", info.name);
        }
    }
}

#[test]
fn vectors_that_gguf_made_wider_get_the_type_of_the_matrices() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let folder = write(&at("folder"), &wide_config(), Dtype::BF16, 7);
    let plain = luthier_surgery::convert::Options { dtype: None, force: false };
    luthier_surgery::convert::run(&open(&folder), &at("there.gguf"), &plain).unwrap();
    run(&open(&at("there.gguf")), &at("a"), &bits_and_bytes("nf4", false)).unwrap();
    run(&open(&folder), &at("b"), &bits_and_bytes("nf4", false)).unwrap();
    let (a, b) = (open(&at("a")), open(&at("b")));
    for info in b.checkpoint.tensors.infos() {
        let came = a.checkpoint.tensors.infos().iter().find(|came| came.name == info.name);
        assert_eq!((came, info.dtype), (Some(info), Dtype::BF16));
        let read =
            |input: &luthier_surgery::Input| input.checkpoint.tensors.read(&info.name).unwrap().to_vec();
        assert!(read(&a) == read(&b), "{}", info.name);
    }
    assert_eq!(b.checkpoint.config["torch_dtype"], "bfloat16");
}

#[test]
fn wrong_uses_and_damaged_parts_of_bitsandbytes_types_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let input = open(&model(home.path()));
    let at = |name: &str| home.path().join(name);
    assert!(Target::parse("int8", true).unwrap_err().to_string().contains("--double"));
    assert!(Target::parse("Q4_0", true).unwrap_err().to_string().contains("nf4 or fp4"));
    let refused = run(&input, &at("out.gguf"), &bits_and_bytes("nf4", false)).unwrap_err().to_string();
    assert!(refused.contains("name a folder"), "{refused}");
    let imatrix = Options { imatrix: Some(at("x")), ..bits_and_bytes("nf4", false) };
    assert!(run(&input, &at("out"), &imatrix).unwrap_err().to_string().contains("--imatrix"));
    run(&input, &at("out"), &bits_and_bytes("nf4", true)).unwrap();
    let path = at("out").join("model.safetensors");
    let good = std::fs::read(&path).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for (from, to, said) in [
        ("\"blocksize\": 64", "\"blocksize\": 63", "blocksize is 63"),
        ("\"dtype\": \"float32\"", "\"dtype\": \"float99\"", "float99"),
        ("\"quant_type\": \"nf4\", \"blo", "\"quant_type\"; \"nf4\", \"blo", "wanted the JSON"),
        (", \"shape\": [288", ", \"shape\": [999", "999"),
        ("q_proj.weight.nested_absmax", "q_proj.weight.nested_absmin", "nested_absm"),
    ] {
        let mut bytes = good.clone();
        let found = bytes.windows(from.len()).position(|window| window == from.as_bytes());
        let Some(found) = found else { panic!("{from} is not in {}", text(&good[good.len() - 400..])) };
        bytes[found..found + from.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, bytes).unwrap();
        let read_all = || -> Result<(), String> {
            let checkpoint = luthier_arch::open(&at("out")).map_err(|problem| problem.to_string())?;
            luthier_arch::check_headers(&checkpoint).map_err(|problem| problem.to_string())?;
            for info in checkpoint.tensors.infos() {
                checkpoint.tensors.read(&info.name).map_err(|problem| problem.to_string())?;
            }
            Ok(())
        };
        let refused = read_all().unwrap_err();
        assert!(refused.contains(said), "{refused}");
    }
}
