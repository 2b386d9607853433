//! What quantize refuses of models that are not what they say.

use std::path::Path;

use luthier_checkpoint::safetensors::SafetensorsWriter;
use luthier_checkpoint::{Checkpoint, Dtype, TensorInfo, TensorSink};
use luthier_surgery::quantize::{Options, Target, run};

use crate::models::{config, names, open, write};

fn options(target: Target) -> Options {
    Options { target, imatrix: None, requantize: false, force: false }
}

/// A scheme of each kind, with an output that it can write.
fn targets() -> [(Target, &'static str); 4] {
    let parse = |name: &str| Target::parse(name, false).unwrap();
    [
        (parse("Q4_0"), "out.gguf"),
        (Target::Size(100_000), "out.gguf"),
        (parse("nf4"), "out"),
        (parse("int8"), "out"),
    ]
}

/// Every target refuses the folder with these words and leaves nothing.
fn refused_by_all(home: &Path, folder: &Path, said: &[&str]) {
    let before = names(home);
    for (target, out) in targets() {
        let refused = run(&open(folder), &home.join(out), &options(target)).unwrap_err().to_string();
        assert!(said.iter().all(|said| refused.contains(said)), "{target:?}: {refused}");
        assert_eq!(names(home), before);
    }
}

/// Writes the folder's weights again, with one tensor changed or more of them.
fn rewrite(folder: &Path, change: impl Fn(&mut Vec<(TensorInfo, Vec<u8>)>)) {
    let mut tensors: Vec<(TensorInfo, Vec<u8>)> = {
        let source = Checkpoint::open_folder(folder).unwrap().tensors;
        let read = |info: &TensorInfo| (info.clone(), source.read(&info.name).unwrap().to_vec());
        source.infos().iter().map(read).collect()
    };
    change(&mut tensors);
    let infos: Vec<TensorInfo> = tensors.iter().map(|(info, _)| info.clone()).collect();
    let metadata = SafetensorsWriter::pt_metadata();
    let mut writer = SafetensorsWriter::create(folder, &infos, &metadata, None).unwrap();
    for (info, bytes) in &tensors {
        writer.write(&info.name, bytes).unwrap();
    }
    writer.finish().unwrap();
}

const MATRIX: &str = "model.layers.1.mlp.down_proj.weight";

#[test]
fn values_that_are_not_finite_are_named() {
    for (bytes, target_types) in [(f32::NAN.to_le_bytes(), 4), (f32::INFINITY.to_le_bytes(), 4)] {
        let home = tempfile::tempdir().unwrap();
        let folder = write(&home.path().join("folder"), &config("llama", 32, 40), Dtype::F32, 3);
        rewrite(&folder, |tensors| {
            let (_, values) = tensors.iter_mut().find(|(info, _)| info.name == MATRIX).unwrap();
            values[40..44].copy_from_slice(&bytes);
        });
        assert_eq!(targets().len(), target_types);
        refused_by_all(home.path(), &folder, &["tensor ", "down"]);
    }
}

#[test]
fn matrices_of_types_that_hold_no_weights_are_refused() {
    for dtype in [Dtype::I64, Dtype::U8, Dtype::Bool] {
        let home = tempfile::tempdir().unwrap();
        let folder = write(&home.path().join("folder"), &config("llama", 32, 40), Dtype::F32, 3);
        rewrite(&folder, |tensors| {
            let (info, values) = tensors.iter_mut().find(|(info, _)| info.name == MATRIX).unwrap();
            info.dtype = dtype;
            *values = vec![0; dtype.size_bytes(&info.shape).unwrap()];
        });
        refused_by_all(home.path(), &folder, &[MATRIX, "expected floats"]);
    }
}

#[test]
fn a_head_that_the_config_ties_but_differs_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let mut tied = config("llama", 32, 40);
    tied.insert("tie_word_embeddings".to_string(), true.into());
    let folder = write(&home.path().join("folder"), &tied, Dtype::F32, 3);
    let add_head = |change: u8| {
        rewrite(&folder, |tensors| {
            tensors.retain(|(info, _)| info.name != "lm_head.weight");
            let (info, mut values) =
                tensors.iter().find(|(info, _)| info.name == "model.embed_tokens.weight").unwrap().clone();
            values[100] ^= change;
            tensors.push((TensorInfo { name: "lm_head.weight".to_string(), ..info }, values));
        });
    };
    add_head(1);
    refused_by_all(home.path(), &folder, &["lm_head.weight", "tie_word_embeddings"]);
    // One that only repeats the embedding is accounted for.
    add_head(0);
    for (target, out) in &targets()[..2] {
        run(&open(&folder), &home.path().join(out), &Options { force: true, ..options(*target) }).unwrap();
        assert!(luthier_arch::open(&home.path().join(out)).unwrap().config["tie_word_embeddings"] == true);
    }
}

#[test]
fn an_unknown_architecture_is_refused_by_its_name() {
    let home = tempfile::tempdir().unwrap();
    let folder = write(&home.path().join("folder"), &config("llama", 32, 40), Dtype::F32, 3);
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    std::fs::write(folder.join("config.json"), text.replace("\"llama\"", "\"llama_of_tomorrow\"")).unwrap();
    refused_by_all(home.path(), &folder, &["llama_of_tomorrow"]);
}
