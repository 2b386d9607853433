//! Model folders: what is read, what is refused, what a lineage hashes.

use luthier_checkpoint::lineage::Parent;
use luthier_checkpoint::safetensors::SafetensorsWriter;
use luthier_checkpoint::{Checkpoint, Dtype, Lineage, TensorSink};

use crate::safetensors::{content, info};

fn model(folder: &std::path::Path) {
    let infos = [info("w", Dtype::F32, &[2]), info("tied", Dtype::F32, &[2])];
    let mut writer = SafetensorsWriter::create(folder, &infos, &[], None).unwrap();
    infos.iter().for_each(|info| writer.write(&info.name, &content(info)).unwrap());
    writer.finish().unwrap();
    std::fs::write(folder.join("config.json"), "{\"zeta\": 1, \"alpha\": 1e-06}").unwrap();
    std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    std::fs::write(folder.join("chat_template.jinja"), "{{ x }}").unwrap();
    std::fs::write(folder.join("optimizer.bin"), "not part of the model").unwrap();
    std::fs::create_dir(folder.join("additional_chat_templates")).unwrap();
    std::fs::write(folder.join("additional_chat_templates/tool.jinja"), "tool").unwrap();
}

#[test]
fn a_folder_is_read_with_its_side_files_and_key_order() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    let checkpoint = Checkpoint::open_folder(folder.path()).unwrap();
    let keys: Vec<_> = checkpoint.config.keys().map(String::as_str).collect();
    assert_eq!(keys, ["zeta", "alpha"]);
    let names: Vec<_> = checkpoint.side_files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["tokenizer.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"]);
    assert_eq!(checkpoint.side_file("chat_template.jinja"), Some(&b"{{ x }}"[..]));
    assert_eq!(checkpoint.tensors.infos().len(), 2);
    assert_eq!(Lineage::read(folder.path()).unwrap(), None);

    let parent = Parent::of_place("my model", folder.path()).unwrap();
    let names: Vec<_> = parent.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "chat_template.jinja",
            "additional_chat_templates/tool.jinja"
        ]
    );
    assert_eq!(parent.files[2].sha256, "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
    let weights = Parent::of_place("w", &folder.path().join("model.safetensors")).unwrap();
    assert_eq!(weights.files[0].name, "model.safetensors");
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = || Checkpoint::open_folder(folder.path()).err().unwrap().to_string();
    assert!(error().contains("config.json"), "{}", error());
    std::fs::write(folder.path().join("config.json"), "[1]").unwrap();
    assert!(error().contains("wanted a JSON object"), "{}", error());
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(error().contains("neither model.safetensors nor pytorch_model.bin"), "{}", error());
    std::fs::write(folder.path().join("pytorch_model.bin"), "x").unwrap();
    assert!(error().contains("pytorch_model.bin: is no file of torch.save"), "{}", error());
    std::fs::write(folder.path().join("model.safetensors"), "").unwrap();
    assert!(error().contains("the file is empty"), "{}", error());
    std::fs::write(folder.path().join("model.safetensors"), "version https://git-lfs.github.com/spec/v1")
        .unwrap();
    assert!(error().contains("run git lfs pull"), "{}", error());
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    std::fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    assert!(error().contains("wanted a file"), "{}", error());
}
