//! A `.model` file with fewer pieces: every other byte of it as it was.

use std::collections::HashSet;

use super::protobuf::{self, Field, Reader, Value};
use super::{field, parse_piece};
use crate::error::{Result, TextError};

/// Field numbers beside those that tokenizing needs.
const SELF_TEST: u64 = 4;
const VOCAB_SIZE: u64 = 4;
const SAMPLES: u64 = 1;
const EXPECTED: u64 = 2;

/// The file with the pieces that `keeps` keeps, by place and text, in their order. vocab_size and the places of special
/// pieces follow; self-tests with a dropped piece go, since SentencePiece refuses a model that fails one.
pub(crate) fn trimmed(file: &str, bytes: &[u8], keeps: impl Fn(usize, &str) -> bool) -> Result<Vec<u8>> {
    let broken = |reason: String| TextError::broken(file, reason);
    let fields = Reader::new(bytes).collect::<std::result::Result<Vec<Field>, String>>().map_err(broken)?;
    let mut places: Vec<Option<u64>> = Vec::new();
    let (mut n_kept, mut dropped) = (0, HashSet::new());
    for found in &fields {
        if let (field::PIECES, Value::Bytes(piece)) = (found.number, &found.value) {
            let text = parse_piece(piece).map_err(broken)?.text;
            let is_kept = keeps(places.len(), &text);
            places.push(is_kept.then_some(n_kept));
            n_kept += u64::from(is_kept);
            if !is_kept {
                dropped.insert(text);
            }
        }
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut piece = 0;
    for found in &fields {
        match (found.number, &found.value) {
            (field::PIECES, Value::Bytes(_)) => {
                if places[piece].is_some() {
                    protobuf::write(&mut out, found.number, &found.value);
                }
                piece += 1;
            }
            (field::TRAINER, Value::Bytes(spec)) => {
                let spec = trainer(spec, n_kept, &places).map_err(broken)?;
                protobuf::write(&mut out, found.number, &Value::Bytes(spec));
            }
            (SELF_TEST, Value::Bytes(tests)) => {
                let tests = self_tests(tests, &dropped).map_err(broken)?;
                protobuf::write(&mut out, found.number, &Value::Bytes(tests));
            }
            _ => protobuf::write(&mut out, found.number, &found.value),
        }
    }
    Ok(out)
}

/// `trainer_spec`: the number of pieces, and where the special ones stand now. A place that is not written is the default
/// one, and is written where that moved.
fn trainer(spec: &[u8], n_kept: u64, places: &[Option<u64>]) -> std::result::Result<Vec<u8>, String> {
    let moved = |old: u64| places.get(usize::try_from(old).ok()?).copied().flatten();
    let mut out = Vec::with_capacity(spec.len());
    // unk_id, bos_id, eos_id: 0, 1, 2 where the file is silent.
    let mut silent = vec![(field::UNK_ID, 0), (field::BOS_ID, 1), (field::EOS_ID, 2)];
    for found in Reader::new(spec) {
        let found = found?;
        let value = match (found.number, &found.value) {
            (VOCAB_SIZE, Value::Number(_)) => Value::Number(n_kept),
            (field::UNK_ID | field::BOS_ID | field::EOS_ID | field::PAD_ID, Value::Number(old)) => {
                Value::Number(moved(*old).unwrap_or(*old))
            }
            (_, value) => value.clone(),
        };
        silent.retain(|(number, _)| *number != found.number);
        protobuf::write(&mut out, found.number, &value);
    }
    for (number, default) in silent {
        if let Some(new) = moved(default).filter(|new| *new != default) {
            protobuf::write(&mut out, number, &Value::Number(new));
        }
    }
    Ok(out)
}

fn self_tests(tests: &[u8], dropped: &HashSet<String>) -> std::result::Result<Vec<u8>, String> {
    let mut out = Vec::new();
    for found in Reader::new(tests) {
        let found = found?;
        if let (SAMPLES, Value::Bytes(sample)) = (found.number, &found.value) {
            let fields = Reader::new(sample).collect::<std::result::Result<Vec<Field>, String>>()?;
            let loses = fields.iter().any(|field| match (field.number, &field.value) {
                (EXPECTED, Value::Bytes(pieces)) => {
                    String::from_utf8_lossy(pieces).split(' ').any(|piece| dropped.contains(piece))
                }
                _ => false,
            });
            if loses {
                continue;
            }
        }
        protobuf::write(&mut out, found.number, &found.value);
    }
    Ok(out)
}
