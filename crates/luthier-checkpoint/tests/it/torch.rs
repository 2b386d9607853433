//! PyTorch's own files: what the reference wrote comes back value for value, and what could run code or lie is refused.

use std::path::{Path, PathBuf};

use luthier_checkpoint::lineage::Parent;
use luthier_checkpoint::safetensors::SafetensorsFile;
use luthier_checkpoint::torch::{Header, TorchFile};
use luthier_checkpoint::{Checkpoint, TensorSource};
use proptest::prelude::*;

const FILES: [&str; 3] = ["zip.bin", "zip_protocol5.bin", "legacy.bin"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/torch").join(name)
}

#[test]
fn every_type_view_and_shared_storage_comes_back_as_the_reference_has_it() {
    let wanted = SafetensorsFile::open(&golden("wanted.safetensors")).unwrap();
    for name in FILES {
        let file = TorchFile::open(&golden(name)).unwrap();
        // PyTorch cannot read types without a storage class of their own back from its old container.
        let lacking = if name == "legacy.bin" { 5 } else { 0 };
        assert_eq!(file.infos().len() + lacking, wanted.infos().len(), "{name}");
        for info in file.infos() {
            assert!(wanted.infos().contains(info), "{name}: {info:?}");
            let (came, wanted) = (file.read(&info.name).unwrap(), wanted.read(&info.name).unwrap());
            assert_eq!(came[..], wanted[..], "{name} {}", info.name);
        }
    }
    let error = TorchFile::open(&golden("zip.bin")).unwrap().read("nothing").unwrap_err().to_string();
    assert!(error.contains("tensor nothing: is not in"), "{error}");
}

#[test]
fn tied_tensors_share_their_bytes_and_views_do_not_copy() {
    for name in FILES {
        let header = Header::parse(&std::fs::read(golden(name)).unwrap()).unwrap();
        let entry = |tensor: &str| header.entries.iter().find(|entry| entry.info.name == tensor).unwrap();
        assert_eq!(entry("embed.weight").range, entry("head.weight").range);
        assert!(entry("offset").strides.is_none() && entry("plain").strides.is_none());
        assert_eq!(entry("transposed").strides.as_deref(), Some(&[1, 5, 20][..]));
        assert_eq!(entry("offset").range.end, entry("plain").range.end);
    }
}

#[test]
fn folders_open_by_one_file_by_shards_and_by_a_lone_file() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    std::fs::write(at("config.json"), "{\"model_type\": \"x\"}").unwrap();
    std::fs::write(at("vocab.txt"), "a").unwrap();
    let hashed = |place: &Path| {
        let files = Parent::of_place("x", place).unwrap().files;
        files.into_iter().map(|file| file.name).collect::<Vec<_>>().join(" ")
    };
    std::fs::copy(golden("legacy.bin"), at("part.bin")).unwrap();
    let names: Vec<String> =
        TorchFile::open(&at("part.bin")).unwrap().infos().iter().map(|info| info.name.clone()).collect();
    let map: serde_json::Map<String, serde_json::Value> =
        names.iter().map(|name| (name.clone(), "part.bin".into())).collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    std::fs::write(at("pytorch_model.bin.index.json"), index).unwrap();
    assert_eq!(Checkpoint::open_folder(home.path()).unwrap().tensors.infos().len(), names.len());
    assert_eq!(hashed(home.path()), "config.json part.bin pytorch_model.bin.index.json vocab.txt");
    std::fs::copy(golden("zip.bin"), at("pytorch_model.bin")).unwrap();
    assert_eq!(hashed(home.path()), "config.json pytorch_model.bin vocab.txt");
    let lone = Checkpoint::open_torch_file(&at("part.bin")).unwrap();
    assert_eq!(lone.side_files.len(), 1);
    assert_eq!(hashed(&at("part.bin")), "config.json part.bin vocab.txt");
    // Safetensors win, as in transformers.
    std::fs::copy(golden("wanted.safetensors"), at("model.safetensors")).unwrap();
    assert_eq!(hashed(home.path()), "config.json model.safetensors vocab.txt");
    std::fs::remove_file(at("config.json")).unwrap();
    let error = Checkpoint::open_torch_file(&at("part.bin")).err().unwrap().to_string();
    assert!(error.contains("wanted a config.json beside it"), "{error}");
}

/// A legacy file whose third pickle is as asked, with one storage `0` of four f32.
fn legacy(pickle: &[u8]) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    file.extend(b"\x80\x02}U\x0dlittle_endian\x88s.");
    file.extend(b"\x80\x02");
    file.extend(pickle);
    file.extend(b".\x80\x02]U\x010a.");
    file.extend(4i64.to_le_bytes());
    file.extend([1f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()));
    file
}

/// A dictionary of one tensor `w` of that offset, shape and strides (each at most 255, one axis).
fn one_tensor(offset: u8, shape: u8, stride: u8) -> Vec<u8> {
    let mut pickle = b"}U\x01wctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04NtQ".to_vec();
    pickle.extend([b'K', offset, b'K', shape, 0x85, b'K', stride, 0x85, 0x89, b'}', b't', b'R', b's']);
    pickle
}

fn refusal(file: &[u8]) -> String {
    Header::parse(file).unwrap_err()
}

#[test]
fn a_handmade_file_is_read_and_a_tensor_out_of_its_storage_is_not() {
    let header = Header::parse(&legacy(&one_tensor(1, 2, 2))).unwrap();
    assert_eq!((header.entries[0].range.len(), header.entries[0].strides.as_deref()), (12, Some(&[2][..])));
    for (offset, shape, stride) in [(0, 5, 1), (1, 4, 1), (4, 1, 1), (0, 2, 4), (0, 3, 200)] {
        let came = refusal(&legacy(&one_tensor(offset, shape, stride)));
        assert!(came.contains("does not lie in storage 0 of 4 values"), "{came}");
    }
}

#[test]
fn code_and_other_things_than_tensors_are_refused_by_name() {
    for (pickle, wanted) in [
        (&b"cos\nsystem\nU\x04true\x85R"[..], "names os.system"),
        (b"cbuiltins\neval\n", "names builtins.eval"),
        (b"\x8c\x02os\x8c\x06system\x93", "names os.system"),
        (b"ctorch.storage\n_load_from_bytes\n", "torch.storage._load_from_bytes"),
        (b"ctorch.nn.modules.linear\nLinear\n)\x81", "state_dict() instead"),
        (b"ctorch\nComplexFloatStorage\n", "torch.ComplexFloatStorage"),
        (b"(ios\nsystem\n", "operation INST"),
        (b"U\x01xU\x01y\x85R", "text is called"),
        (b"]}b", "a list is given attributes"),
        (b"K\x01", "holds a whole number; wanted a dictionary"),
        (b"}", "holds no tensor"),
        (b"}U\x01wK\x01s", "key \"w\" holds a whole number"),
        (b"}U\x05state}s", "key \"state\" holds a dictionary"),
        (b"}K\x01K\x01s", "a key of the dictionary is a whole number"),
        (b"0", "not there"),
        (b"(0", "not there"),
        (b"\x87", "not there"),
        (b"t", "a mark is missing"),
        (b"h\x07", "asked for before it is there"),
        (b"X\xff\xff\xff\x7f", "cut off"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "cut off"),
        (b"K\x01Q", "wanted a storage"),
        (b"\xff", "is no operation"),
        // A list that holds itself.
        (b"]q\x00h\x00a", "holds a list"),
    ] {
        let came = refusal(&legacy(pickle));
        assert!(came.contains(wanted), "{:?}: {came}", String::from_utf8_lossy(pickle));
    }
    let twice = [&one_tensor(0, 1, 1)[..], &one_tensor(0, 1, 1)[1..]].concat();
    assert!(refusal(&legacy(&twice)).contains("tensor w stands twice"));
}

#[test]
fn other_containers_and_big_endian_files_are_refused() {
    let big = legacy(&one_tensor(0, 1, 1));
    let position = big.windows(14).position(|window| window == b"little_endian\x88").unwrap() + 13;
    let mut big = big;
    big[position] = 0x89;
    assert!(refusal(&big).contains("big-endian"));
    let mut zip = std::fs::read(golden("zip.bin")).unwrap();
    let order = zip.windows(6).position(|window| window == b"little").unwrap();
    zip[order..order + 6].copy_from_slice(b"bigbig");
    assert!(refusal(&zip).contains("big-endian"));
    let mut compressed = std::fs::read(golden("zip.bin")).unwrap();
    let entry = compressed.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    compressed[entry + 10] = 8;
    assert!(refusal(&compressed).contains("is compressed"));
    let mut tar = vec![0; 600];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(refusal(&tar).contains("tar archive"));
    assert!(refusal(b"\x80\x02}.").contains("plain pickle"));
    assert!(refusal(b"nothing").contains("is no file of torch.save"));
}

#[test]
fn a_tensor_that_repeats_few_values_into_many_is_refused() {
    // 255^4 values of stride 0 over four stored ones.
    let pickle = b"}U\x01wctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04NtQK\x00(K\xffK\xffK\xffK\xfft(K\x00K\x00K\x00K\x00t\x89}tRs";
    let came = refusal(&legacy(pickle));
    assert!(came.contains("repeats a few stored values"), "{came}");
}

#[test]
fn every_cut_is_refused() {
    for name in ["zip.bin", "legacy.bin"] {
        let file = std::fs::read(golden(name)).unwrap();
        for len in 0..file.len() {
            assert!(Header::parse(&file[..len]).is_err(), "{name} cut to {len}");
        }
    }
}

/// The file with the checksums that PyTorch writes where it is told not to compute any.
fn without_checksums(mut file: Vec<u8>) -> Vec<u8> {
    for at in 0..file.len().saturating_sub(20) {
        if file[at..].starts_with(b"PK\x01\x02") {
            file[at + 16..at + 20].fill(0);
        }
    }
    file
}

#[test]
fn bytes_that_changed_since_they_were_saved_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("pytorch_model.bin");
    let good = std::fs::read(golden("zip.bin")).unwrap();
    let header = Header::parse(&good).unwrap();
    let damaged = header.entries.iter().find(|entry| entry.info.name == "embed.weight").unwrap();
    let mut file = good.clone();
    file[damaged.range.start] ^= 1;
    std::fs::write(&path, &file).unwrap();
    let opened = TorchFile::open(&path).unwrap();
    for entry in &header.entries {
        let is_damaged = entry.range.start == damaged.range.start;
        match opened.read(&entry.info.name) {
            Ok(_) => assert!(!is_damaged, "{}", entry.info.name),
            Err(refused) => {
                let refused = refused.to_string();
                assert!(
                    is_damaged
                        && refused.contains("another checksum")
                        && refused.contains("embed") | refused.contains("head"),
                    "{refused}"
                );
            }
        }
    }
    std::fs::write(&path, without_checksums(file)).unwrap();
    assert!(TorchFile::open(&path).unwrap().read("embed.weight").is_ok());
    let mut file = good;
    let pickle = file.windows(12).position(|window| window == b"embed.weight").unwrap();
    file[pickle] = b'E';
    assert!(refusal(&file).contains("data.pkl has another checksum"), "{}", refusal(&file));
    assert!(Header::parse(&without_checksums(file)).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn damaged_files_never_panic_and_never_leave_the_file(
        which in 0usize..3,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        // The checksum would stand before what is tried.
        let mut file = without_checksums(std::fs::read(golden(FILES[which])).unwrap());
        for (at, byte) in edits {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Ok(header) = Header::parse(&file) {
            for entry in header.entries {
                prop_assert!(entry.range.start <= entry.range.end && entry.range.end <= file.len());
                prop_assert!(entry.strides.is_some() || entry.range.len() == entry.size_bytes());
            }
        }
    }

    #[test]
    fn any_pickle_is_refused_or_read(pickle in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Header::parse(&legacy(&pickle));
    }
}
