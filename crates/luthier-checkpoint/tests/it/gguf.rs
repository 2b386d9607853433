//! GGUF: round trips of every type of metadata and tensor, and refusals.

use luthier_checkpoint::gguf::{GgufWriter, Header};
use luthier_checkpoint::{Dtype, Gguf, GgufArray, GgufValue, TensorInfo, TensorSink, TensorSource};
use proptest::prelude::*;

use crate::safetensors::{content, info};

fn pair(key: &str, value: GgufValue) -> (String, GgufValue) {
    (key.to_string(), value)
}

fn every_value() -> Vec<(String, GgufValue)> {
    let array = |array| GgufValue::Array(array);
    vec![
        pair("u8", GgufValue::U8(200)),
        pair("i8", GgufValue::I8(-3)),
        pair("u16", GgufValue::U16(60000)),
        pair("i16", GgufValue::I16(-300)),
        pair("u32", GgufValue::U32(4_000_000_000)),
        pair("i32", GgufValue::I32(-70000)),
        pair("f32", GgufValue::F32(1e-6)),
        pair("bool", GgufValue::Bool(true)),
        pair("string", GgufValue::String("grüße\0".to_string())),
        pair("u64", GgufValue::U64(u64::MAX)),
        pair("i64", GgufValue::I64(i64::MIN)),
        pair("f64", GgufValue::F64(0.1)),
        pair("a.u8", array(GgufArray::U8(vec![1, 2]))),
        pair("a.i8", array(GgufArray::I8(vec![-1]))),
        pair("a.u16", array(GgufArray::U16(vec![9]))),
        pair("a.i16", array(GgufArray::I16(vec![-9]))),
        pair("a.u32", array(GgufArray::U32(vec![7]))),
        pair("a.i32", array(GgufArray::I32(vec![-7, 3]))),
        pair("a.f32", array(GgufArray::F32(vec![0.5]))),
        pair("a.bool", array(GgufArray::Bool(vec![true, false]))),
        pair("a.string", array(GgufArray::String(vec!["a".to_string(), String::new()]))),
        pair("a.a", array(GgufArray::Array(vec![GgufArray::U8(vec![1]), GgufArray::String(vec![])]))),
        pair("a.u64", array(GgufArray::U64(vec![u64::MAX]))),
        pair("a.i64", array(GgufArray::I64(vec![-1]))),
        pair("a.f64", array(GgufArray::F64(vec![]))),
    ]
}

fn every_tensor() -> Vec<TensorInfo> {
    let names = [
        "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
        "I8", "I32", "I64", "F64",
    ];
    let mut infos: Vec<_> =
        names.iter().map(|name| info(name, Dtype::from_name(name).unwrap(), &[3, 256])).collect();
    infos.push(info("vector", Dtype::F32, &[5]));
    infos.push(info("four", Dtype::F16, &[2, 1, 3, 1]));
    infos
}

fn written(metadata: &[(String, GgufValue)], infos: &[TensorInfo]) -> (tempfile::TempDir, Gguf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut writer = GgufWriter::create(&path, metadata, infos).unwrap();
    for info in infos.iter().rev() {
        writer.write(&info.name, &content(info)).unwrap();
    }
    writer.finish().unwrap();
    let gguf = Gguf::open(&path).unwrap();
    (folder, gguf)
}

#[test]
fn every_type_comes_back_in_order() {
    for alignment in [None, Some(8), Some(4096)] {
        let mut metadata = every_value();
        metadata.extend(alignment.map(|alignment| pair("general.alignment", GgufValue::U32(alignment))));
        let infos = every_tensor();
        let (_folder, gguf) = written(&metadata, &infos);
        assert_eq!((gguf.version, gguf.alignment), (3, alignment.unwrap_or(32) as usize));
        assert_eq!(gguf.metadata, metadata);
        assert_eq!(gguf.infos(), infos);
        for info in &infos {
            assert_eq!(&*gguf.read(&info.name).unwrap(), content(info), "{}", info.name);
        }
        assert!(gguf.read("missing").is_err());
        let len = std::fs::metadata(gguf.path()).unwrap().len();
        assert_eq!(len % gguf.alignment as u64, 0);
    }
}

/// `split.no`, `split.count` and `split.tensors.count`.
type SplitKeys = (u16, u16, i32);

/// Writes one part of a split model with tensors of these names, each of one value.
fn part(folder: &std::path::Path, number: u16, keys: SplitKeys, names: &[&str]) -> std::path::PathBuf {
    let path = folder.join(format!("m-{:05}-of-00002.gguf", number + 1));
    let (no, count, n_tensors) = keys;
    let metadata = [
        pair("general.architecture", GgufValue::String("llama".to_string())),
        pair("split.no", GgufValue::U16(no)),
        pair("split.count", GgufValue::U16(count)),
        pair("split.tensors.count", GgufValue::I32(n_tensors)),
    ];
    let info = |name: &&str| TensorInfo { name: name.to_string(), dtype: Dtype::F32, shape: vec![1] };
    let infos: Vec<TensorInfo> = names.iter().map(info).collect();
    let mut writer = GgufWriter::create(&path, &metadata, &infos).unwrap();
    for (idx, name) in names.iter().enumerate() {
        writer.write(name, &(f32::from(number) + idx as f32 / 8.0).to_le_bytes()).unwrap();
    }
    writer.finish().unwrap();
    path
}

#[test]
fn all_parts_of_a_split_file_are_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let first = part(folder.path(), 0, (0, 2, 3), &["a"]);
    let second = part(folder.path(), 1, (1, 2, 3), &["b", "c"]);
    let gguf = Gguf::open(&first).unwrap();
    let names: Vec<&str> = gguf.infos().iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(gguf.read("c").unwrap().to_vec(), 1.125f32.to_le_bytes());
    assert!(gguf.get("split.count").is_none() && gguf.get("general.architecture").is_some());
    let parent = luthier_checkpoint::lineage::Parent::of_place("m", &first).unwrap();
    assert_eq!(parent.files.len(), 2);
    let refused = Gguf::open(&second).err().unwrap().to_string();
    assert!(refused.contains("give the first one: m-00001-of-00002.gguf"), "{refused}");
    for part in [&first, &second] {
        let refused = luthier_checkpoint::Output::file(part, true, &[&first]).err().unwrap().to_string();
        assert!(refused.contains("the output is the input"), "{refused}");
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let cases: [(&str, SplitKeys, &[&str]); 4] = [
        ("say part 1 of 2", (0, 2, 2), &["b"]),
        ("say part 2 of 3", (1, 3, 2), &["b"]),
        ("tensor a stands in another part already", (1, 2, 2), &["a"]),
        ("split.tensors.count is 2, its 2 parts hold 1", (1, 2, 2), &[]),
    ];
    for (wanted, keys, names) in cases {
        let folder = tempfile::tempdir().unwrap();
        let first = part(folder.path(), 0, (0, 2, 2), &["a"]);
        let missing = Gguf::open(&first).err().unwrap().to_string();
        assert!(missing.contains("m-00002-of-00002.gguf") && missing.contains("is missing"), "{missing}");
        part(folder.path(), 1, keys, names);
        let refused = Gguf::open(&first).err().unwrap().to_string();
        assert!(refused.contains(wanted), "{refused}");
        let renamed = folder.path().join("other.gguf");
        std::fs::rename(&first, &renamed).unwrap();
        let refused = Gguf::open(&renamed).err().unwrap().to_string();
        assert!(refused.contains("its name must end in -00001-of-00002.gguf"), "{refused}");
    }
}

#[test]
fn values_convert_between_widths_but_not_kinds() {
    assert_eq!(GgufValue::I32(-1).as_u64(), None);
    assert_eq!(GgufValue::U64(u64::MAX).as_i64(), None);
    assert_eq!(GgufValue::U16(3).as_f64(), Some(3.0));
    assert_eq!(GgufValue::F32(3.0).as_u64(), None);
    assert_eq!(GgufValue::Array(GgufArray::I16(vec![-2])).as_numbers(), Some(vec![-2.0]));
}

/// A file by hand: a version, counts, then whatever follows.
fn file(version: u32, n_tensors: u64, n_metadata: u64, rest: &[u8]) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(version.to_le_bytes());
    file.extend(n_tensors.to_le_bytes());
    file.extend(n_metadata.to_le_bytes());
    file.extend(rest);
    file
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn tensor(name: &str, axes: &[u64], type_id: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((axes.len() as u32).to_le_bytes());
    axes.iter().for_each(|axis| bytes.extend(axis.to_le_bytes()));
    bytes.extend(type_id.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

fn refuse(file: &[u8], wanted: &str) {
    let error = Header::parse(file).expect_err(wanted);
    assert!(error.contains(wanted), "wanted {wanted:?}: {error}");
}

#[test]
fn lying_counts_are_refused_before_memory_is_asked_for() {
    refuse(b"GG", "cut off");
    refuse(b"GGML....", "wanted the magic");
    refuse(&file(1, 0, 0, &[]), "version 1 is not read");
    refuse(&file(3u32.swap_bytes(), 0, 0, &[]), "big-endian");
    refuse(&file(3, u64::MAX, 0, &[0; 64]), "says 18446744073709551615 tensors");
    refuse(&file(3, 0, u64::MAX, &[0; 64]), "says 18446744073709551615 metadata keys");
    refuse(&file(3, 0, 1, &[&u64::MAX.to_le_bytes()[..], &[0; 64]].concat()), "bytes of text");
    let array = |element: u32, count: u64| {
        let mut rest = text("key");
        [9, element].iter().for_each(|number: &u32| rest.extend(number.to_le_bytes()));
        rest.extend(count.to_le_bytes());
        rest.resize(rest.len() + 64, 0);
        file(3, 0, 1, &rest)
    };
    for element in 0..=12 {
        refuse(&array(element, u64::MAX), "metadata key key: says 18446744073709551615");
        refuse(&array(element, 1 << 40), "metadata key key: says 1099511627776");
    }
    refuse(&array(13, 1), "array element type 13");
    refuse(&file(3, 0, 1, &[text("key"), 77u32.to_le_bytes().to_vec()].concat()), "value type 77");
    let nested =
        [text("key"), [9u8, 0, 0, 0].to_vec(), [[9u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]; 50].concat()]
            .concat();
    refuse(&file(3, 0, 1, &nested), "deeper than 4");
    let twice = [text("k"), vec![0, 0, 0, 0, 1], text("k"), vec![0, 0, 0, 0, 1]].concat();
    refuse(&file(3, 0, 2, &twice), "key k stands there twice");
    refuse(&file(3, 0, 1, &[text("k"), vec![7, 0, 0, 0, 2]].concat()), "truth value is 2");
    let not_text = [text("k"), vec![8, 0, 0, 0], 2u64.to_le_bytes().to_vec(), vec![0xff, 0xfe]].concat();
    refuse(&file(3, 0, 1, &not_text), "not UTF-8");
}

#[test]
fn impossible_tensors_are_refused_by_name() {
    let one = |axes: &[u64], type_id: u32, offset: u64| {
        // One tensor's data and its padding: four f32, at most 32 bytes.
        let mut bytes = file(3, 1, 0, &tensor("w", axes, type_id, offset));
        bytes.resize(bytes.len().next_multiple_of(32) + 32, 0);
        bytes
    };
    assert_eq!(Header::parse(&one(&[4], 0, 0)).unwrap().entries.len(), 1);
    refuse(&one(&[1, 1, 1, 1, 1], 0, 0), "tensor w has 5 axes");
    refuse(
        &one(&[1 << 40, 1 << 40], 0, 0),
        "tensor w: shape [1099511627776, 1099511627776] of F32 is impossible",
    );
    refuse(&one(&[33], 2, 0), "tensor w: shape [33] of Q4_0 is impossible");
    refuse(&one(&[4], 20, 0), "ggml type 20 (IQ4_NL) is not read");
    refuse(&one(&[4], 0, 7), "no multiple of the alignment 32");
    refuse(&one(&[4096], 0, 0), "end outside the file");
    refuse(&one(&[4], 0, u64::MAX - 31), "end outside the file");
    let pair = |second: &str, offset: u64| {
        let infos = [tensor("w", &[16], 0, 0), tensor(second, &[4], 0, offset), vec![0; 256]].concat();
        file(3, 2, 0, &infos)
    };
    refuse(&pair("v", 32), "tensor v overlaps tensor w");
    refuse(&pair("w", 64), "tensor w stands there twice");
    let alignment = |value: u32| {
        let rest =
            [text("general.alignment"), 4u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat();
        file(3, 0, 1, &rest)
    };
    for value in [0, 3, 1 << 31] {
        refuse(&alignment(value), "key general.alignment");
    }
}

#[test]
fn a_writer_refuses_what_the_format_cannot_hold() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let refuse = |info: TensorInfo, wanted: &str| {
        let error = GgufWriter::create(&path, &[], &[info]).err().expect(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refuse(info("b", Dtype::Bool, &[1]), "do not hold BOOL");
    refuse(info(&"n".repeat(64), Dtype::F32, &[1]), "more than 63 bytes");
    refuse(info("five", Dtype::F32, &[1, 1, 1, 1, 1]), "4 axes at most");
    refuse(info("q", Dtype::from_name("Q6_K").unwrap(), &[255]), "is impossible");
    let mut writer = GgufWriter::create(&path, &[], &[info("a", Dtype::F32, &[1])]).unwrap();
    assert!(writer.finish().is_err());
    assert!(writer.write("a", &[0; 3]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_files_never_panic(cut in 0usize..4000, flips in prop::collection::vec((0usize..1400, any::<u8>()), 0..6)) {
        let (_folder, gguf) = written(&every_value(), &every_tensor()[..4]);
        let mut file = std::fs::read(gguf.path()).unwrap();
        for (at, byte) in flips {
            let len = file.len();
            file[at % len] ^= byte;
        }
        if cut < 1400 {
            file.truncate(cut);
        }
        if let Ok(header) = Header::parse(&file) {
            for (_, range) in header.entries {
                prop_assert!(range.end <= file.len());
            }
        }
    }

    #[test]
    fn texts_and_shapes_come_back(
        texts in prop::collection::vec(".{0,12}", 0..6),
        shapes in prop::collection::vec(prop::collection::vec(0usize..5, 1..5), 0..6),
    ) {
        let metadata = [pair("texts", GgufValue::Array(GgufArray::String(texts)))];
        let infos: Vec<_> =
            shapes.iter().enumerate().map(|(i, shape)| info(&format!("t{i}"), Dtype::BF16, shape)).collect();
        let (_folder, gguf) = written(&metadata, &infos);
        prop_assert_eq!(&gguf.metadata[..], &metadata[..]);
        prop_assert_eq!(gguf.infos(), &infos[..]);
        for info in &infos {
            let read = gguf.read(&info.name).unwrap();
            prop_assert_eq!(&*read, &content(info)[..]);
        }
    }
}
