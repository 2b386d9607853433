//! Reads the metadata of a GGUF file, as far as comparing tokenizers needs it (the real reader is luthier-checkpoint's).

use std::collections::BTreeMap;
use std::path::Path;

use luthier_text::gguf::GgufTokenizer;

/// A metadata value; numbers are widened.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Number(f64),
    Bool(bool),
    Text(String),
    List(Vec<Value>),
}

/// Key to value of a file.
pub(crate) fn read(path: &Path) -> std::io::Result<BTreeMap<String, Value>> {
    let bytes = std::fs::read(path)?;
    let mut at = 8;
    let _tensors = u64_at(&bytes, &mut at);
    let count = u64_at(&bytes, &mut at);
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = text_at(&bytes, &mut at);
        let kind = u32_at(&bytes, &mut at);
        metadata.insert(key, value_at(&bytes, &mut at, kind));
    }
    Ok(metadata)
}

fn take<const N: usize>(bytes: &[u8], at: &mut usize) -> [u8; N] {
    *at += N;
    bytes[*at - N..*at].try_into().expect("N bytes")
}

fn u32_at(bytes: &[u8], at: &mut usize) -> u32 {
    u32::from_le_bytes(take(bytes, at))
}

fn u64_at(bytes: &[u8], at: &mut usize) -> u64 {
    u64::from_le_bytes(take(bytes, at))
}

fn text_at(bytes: &[u8], at: &mut usize) -> String {
    let len = u64_at(bytes, at) as usize;
    *at += len;
    String::from_utf8_lossy(&bytes[*at - len..*at]).into_owned()
}

fn value_at(bytes: &[u8], at: &mut usize, kind: u32) -> Value {
    match kind {
        0 => Value::Number(u8::from_le_bytes(take(bytes, at)).into()),
        1 => Value::Number(i8::from_le_bytes(take(bytes, at)).into()),
        2 => Value::Number(u16::from_le_bytes(take(bytes, at)).into()),
        3 => Value::Number(i16::from_le_bytes(take(bytes, at)).into()),
        4 => Value::Number(u32_at(bytes, at).into()),
        5 => Value::Number(i32::from_le_bytes(take(bytes, at)).into()),
        6 => Value::Number(f32::from_le_bytes(take(bytes, at)).into()),
        7 => Value::Bool(take::<1>(bytes, at)[0] != 0),
        8 => Value::Text(text_at(bytes, at)),
        9 => {
            let kind = u32_at(bytes, at);
            let count = u64_at(bytes, at);
            Value::List((0..count).map(|_| value_at(bytes, at, kind)).collect())
        }
        10 => Value::Number(u64_at(bytes, at) as f64),
        11 => Value::Number(i64::from_le_bytes(take(bytes, at)) as f64),
        _ => Value::Number(f64::from_le_bytes(take(bytes, at))),
    }
}

/// The tokenizer's part of the metadata.
pub(crate) fn tokenizer(metadata: &BTreeMap<String, Value>) -> GgufTokenizer {
    let text = |key: &str| match metadata.get(key) {
        Some(Value::Text(text)) => Some(text.clone()),
        _ => None,
    };
    let id = |key: &str| match metadata.get(&format!("tokenizer.ggml.{key}")) {
        Some(Value::Number(number)) => Some(*number as u32),
        _ => None,
    };
    let flag = |key: &str| match metadata.get(&format!("tokenizer.ggml.{key}")) {
        Some(Value::Bool(flag)) => Some(*flag),
        _ => None,
    };
    let list = |key: &str| match metadata.get(&format!("tokenizer.ggml.{key}")) {
        Some(Value::List(values)) => values.clone(),
        _ => Vec::new(),
    };
    let texts = |key: &str| {
        let texts = list(key).into_iter();
        texts.filter_map(|value| if let Value::Text(text) = value { Some(text) } else { None }).collect()
    };
    let numbers = |key: &str| -> Vec<f64> {
        let numbers = list(key).into_iter();
        numbers
            .filter_map(|value| if let Value::Number(number) = value { Some(number) } else { None })
            .collect()
    };
    GgufTokenizer {
        model: text("tokenizer.ggml.model").unwrap_or_default(),
        pre: text("tokenizer.ggml.pre"),
        tokens: texts("tokens"),
        scores: numbers("scores").into_iter().map(|number| number as f32).collect(),
        token_types: numbers("token_type").into_iter().map(|number| number as i32).collect(),
        merges: texts("merges"),
        bos_id: id("bos_token_id"),
        eos_id: id("eos_token_id"),
        unk_id: id("unknown_token_id"),
        pad_id: id("padding_token_id"),
        eot_id: id("eot_token_id"),
        sep_id: id("seperator_token_id"),
        cls_id: id("cls_token_id"),
        mask_id: id("mask_token_id"),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
        remove_extra_whitespaces: flag("remove_extra_whitespaces"),
        precompiled_charsmap: numbers("precompiled_charsmap")
            .into_iter()
            .map(|number| number as u8)
            .collect(),
        chat_template: text("tokenizer.chat_template"),
        named_chat_templates: BTreeMap::new(),
        hf_json: text("tokenizer.huggingface.json"),
    }
}
