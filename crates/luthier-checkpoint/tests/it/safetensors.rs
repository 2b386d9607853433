//! Safetensors: round trips, what the reference implementation thinks of them, and refusals.

use luthier_checkpoint::safetensors::{Header, Index, SafetensorsFile, SafetensorsWriter, ShardedTensors};
use luthier_checkpoint::{Dtype, TensorInfo, TensorSink, TensorSource};
use proptest::prelude::*;

pub(crate) fn info(name: &str, dtype: Dtype, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.to_string(), dtype, shape: shape.to_vec() }
}

/// Bytes that differ from tensor to tensor.
pub(crate) fn content(info: &TensorInfo) -> Vec<u8> {
    let size = info.dtype.size_bytes(&info.shape).unwrap();
    let seed: usize = info.name.bytes().map(usize::from).sum();
    (0..size).map(|i| (i * 31 + seed) as u8).collect()
}

fn write_all(writer: &mut dyn TensorSink, infos: &[TensorInfo]) {
    // Backwards, since any order has to do.
    for info in infos.iter().rev() {
        writer.write(&info.name, &content(info)).unwrap();
    }
    writer.finish().unwrap();
}

fn mixed() -> Vec<TensorInfo> {
    vec![
        info("bytes", Dtype::U8, &[3]),
        info("half", Dtype::BF16, &[3, 1]),
        info("scalar", Dtype::F32, &[]),
        info("none", Dtype::I64, &[0, 5]),
        info("double", Dtype::F64, &[2]),
        info("truth", Dtype::Bool, &[1]),
        info("tiny", Dtype::F8E4M3, &[5]),
    ]
}

#[test]
fn every_type_comes_back_and_the_reference_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let infos = mixed();
    let metadata = SafetensorsWriter::pt_metadata();
    let mut writer = SafetensorsWriter::create(folder.path(), &infos, &metadata, None).unwrap();
    write_all(&mut writer, &infos);
    let path = folder.path().join("model.safetensors");
    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.metadata(), metadata);
    assert_eq!(file.infos().len(), infos.len());
    let bytes = std::fs::read(&path).unwrap();
    let reference = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for info in &infos {
        assert!(file.infos().contains(info));
        assert_eq!(&*file.read(&info.name).unwrap(), content(info));
        let view = reference.tensor(&info.name).unwrap();
        assert_eq!((view.shape(), view.data()), (&info.shape[..], &content(info)[..]));
        assert_eq!(
            view.data().as_ptr() as usize % info.dtype.block().1,
            bytes.as_ptr() as usize % info.dtype.block().1
        );
    }
    assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
}

#[test]
fn shards_hold_at_most_what_was_asked_and_open_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let infos: Vec<_> = (0..5).map(|i| info(&format!("t{i}"), Dtype::F32, &[10 + 20 * (i / 4)])).collect();
    let metadata = SafetensorsWriter::pt_metadata();
    let mut writer = SafetensorsWriter::create(folder.path(), &infos, &metadata, Some(100)).unwrap();
    write_all(&mut writer, &infos);
    let index_path = folder.path().join("model.safetensors.index.json");
    let sharded = ShardedTensors::open(&index_path).unwrap();
    let names: Vec<_> = sharded.paths().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors"
        ]
    );
    assert_eq!(sharded.infos(), infos);
    for info in &infos {
        assert_eq!(&*sharded.read(&info.name).unwrap(), content(info));
    }
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(&index_path).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 4 * (4 * 10 + 30));

    std::fs::remove_file(folder.path().join("model-00002-of-00003.safetensors")).unwrap();
    let error = ShardedTensors::open(&index_path).err().unwrap().to_string();
    assert!(error.contains("names shard model-00002-of-00003.safetensors, which is not there"), "{error}");
}

#[test]
fn an_index_that_contradicts_its_shards_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let infos = [info("a", Dtype::U8, &[1]), info("b", Dtype::U8, &[1])];
    let mut writer = SafetensorsWriter::create(folder.path(), &infos, &[], None).unwrap();
    write_all(&mut writer, &infos);
    let index_path = folder.path().join("model.safetensors.index.json");
    let refuse = |weight_map: &str, wanted: &str| {
        std::fs::write(&index_path, format!("{{\"weight_map\": {weight_map}}}")).unwrap();
        let error = ShardedTensors::open(&index_path).err().expect(weight_map).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refuse(r#"{"a": "model.safetensors"}"#, "tensor b: is in");
    let lying = r#"{"a": "model.safetensors", "b": "model.safetensors", "c": "model.safetensors"}"#;
    refuse(lying, "tensor c: ");
    refuse(r#"{"a": "../model.safetensors"}"#, "not the name of a .safetensors file");
    refuse(r#"{"a": "model.safetensors", "a": "model.safetensors"}"#, "key a stands there twice");
    refuse("{}", "names no tensor");
    refuse("[]", "expected an object");
}

fn file_of(header: &str, data_len: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data_len, 7);
    file
}

#[test]
fn lying_headers_are_refused_by_name() {
    let one = |fields: &str| format!("{{\"w\":{{{fields}}}}}");
    let cases: &[(String, usize, &str)] = &[
        (one(r#""dtype":"F32","shape":[2],"data_offsets":[0,4]"#), 4, "tensor w: shape [2] of F32 needs 8 bytes"),
        (one(r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#), 4, "tensor w: bytes 0..8 lie outside"),
        (one(r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#), 8, "tensor w: bytes 8..0 lie outside"),
        (one(r#""dtype":"F32","shape":[1],"data_offsets":[0,4]"#), 8, "4 bytes after the last tensor"),
        (one(r#""dtype":"F32","shape":[1],"data_offsets":[4,8]"#), 8, "leaves a gap"),
        (one(r#""dtype":"F31","shape":[1],"data_offsets":[0,4]"#), 4, "type \"F31\" is not read"),
        (one(r#""dtype":"F32","shape":[-1],"data_offsets":[0,4]"#), 4, "header: "),
        (one(r#""dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1"#), 4, "unknown field"),
        (
            one(r#""dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]"#),
            4,
            "is impossible",
        ),
        (one(r#""dtype":"F32","shape":[0,18446744073709551615,18446744073709551615],"data_offsets":[0,4]"#), 4, "w"),
        ("{".to_string(), 0, "header: "),
        ("[]".to_string(), 0, "an object of tensors"),
        (
            r#"{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"v":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#
                .to_string(),
            3,
            "tensor v: starts at byte",
        ),
        (
            r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#
                .to_string(),
            2,
            "tensor w stands there twice",
        ),
    ];
    for (header, data_len, wanted) in cases {
        let error = Header::parse(&file_of(header, *data_len)).expect_err(header);
        assert!(error.contains(wanted), "{header}: {error}");
    }
    assert!(Header::parse(b"1234567").unwrap_err().contains("7 bytes"));
    assert!(Header::parse(&u64::MAX.to_le_bytes()).unwrap_err().contains("cut off"));
    assert_eq!(Header::parse(&file_of("{}", 0)).unwrap().entries, []);
}

#[test]
fn a_writer_refuses_what_it_was_not_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.bin");
    let infos = [info("a", Dtype::U8, &[2])];
    let mut writer = SafetensorsWriter::create_file(&path, &infos, &[]).unwrap();
    assert!(writer.write("b", &[1]).is_err());
    assert!(writer.write("a", &[1]).is_err());
    let mut writer = SafetensorsWriter::create_file(&path, &infos, &[]).unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("tensor a: was never written"));
    let quantised = [info("q", Dtype::from_name("Q4_K").unwrap(), &[256])];
    let error = SafetensorsWriter::create_file(&path, &quantised, &[]).err().unwrap().to_string();
    assert!(error.contains("do not hold Q4_K"), "{error}");
    let twice = [info("a", Dtype::U8, &[2]), info("a", Dtype::U8, &[2])];
    assert!(SafetensorsWriter::create_file(&path, &twice, &[]).is_err());
}

fn any_info() -> impl Strategy<Value = (Dtype, Vec<usize>)> {
    let dtypes =
        prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64, Dtype::I8, Dtype::U64]);
    (dtypes, prop::collection::vec(0usize..5, 0..4))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_written_is_read(specs in prop::collection::vec(any_info(), 1..8), max in prop::option::of(1usize..400)) {
        let folder = tempfile::tempdir().unwrap();
        let infos: Vec<_> =
            specs.iter().enumerate().map(|(i, (dtype, shape))| info(&format!("t.{i}"), *dtype, shape)).collect();
        let mut writer = SafetensorsWriter::create(folder.path(), &infos, &[], max).unwrap();
        write_all(&mut writer, &infos);
        let index = folder.path().join("model.safetensors.index.json");
        let source: Box<dyn TensorSource> = if index.exists() {
            Box::new(ShardedTensors::open(&index).unwrap())
        } else {
            Box::new(SafetensorsFile::open(&folder.path().join("model.safetensors")).unwrap())
        };
        prop_assert_eq!(source.infos().len(), infos.len());
        for info in &infos {
            prop_assert!(source.infos().contains(info));
            let read = source.read(&info.name).unwrap();
            prop_assert_eq!(&*read, &content(info)[..]);
        }
    }

    #[test]
    fn damaged_files_never_panic(cut in 0usize..400, flips in prop::collection::vec((0usize..400, any::<u8>()), 0..4)) {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;
        let mut file = file_of(header, 32);
        for (at, byte) in flips {
            let len = file.len();
            file[at % len] ^= byte;
        }
        file.truncate(cut.max(1));
        if let Ok(header) = Header::parse(&file) {
            for entry in header.entries {
                prop_assert!(entry.range.end <= file.len());
            }
        }
        let _ = Index::parse(&file);
    }
}
