//! SentencePiece `.model` files: read, write, and turn into a tokenizer as transformers' converters do.
//!
//! The file is a protobuf message `ModelProto` (sentencepiece_model.proto of google/sentencepiece). Only the
//! fields that tokenizing needs are understood; all others are kept as bytes and written back.

pub(crate) mod charsmap;
mod convert;
pub(crate) mod pipeline;
mod protobuf;
pub(crate) mod trim;

use crate::error::{Result, TextError};
use protobuf::{Field, Reader, Value};

pub(crate) use convert::to_tokenizer;

/// Kinds of pieces; the numbers are the file's, and GGUF's `token_type` too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum PieceKind {
    /// Part of the ordinary vocabulary.
    Normal = 1,
    /// The unknown piece.
    Unknown = 2,
    /// Special, does not appear in decoded text.
    Control = 3,
    /// Recognised before all else, appears in decoded text.
    UserDefined = 4,
    /// Never produced.
    Unused = 5,
    /// One byte, `<0x0A>`.
    Byte = 6,
}

/// One entry of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The piece, spaces written as `▁`.
    pub text: String,
    /// Log probability (unigram) or order of merging (BPE).
    pub score: f32,
    /// What kind of piece it is.
    pub kind: PieceKind,
}

/// How a model cuts a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Algorithm {
    /// Most probable segmentation.
    Unigram = 1,
    /// Merges in the order of scores.
    Bpe = 2,
    /// Whole words.
    Word = 3,
    /// Single characters.
    Char = 4,
}

/// A `.model` file as a value.
#[derive(Debug, Clone, PartialEq)]
pub struct SentencePieceModel {
    /// The vocabulary; a piece's id is its place.
    pub pieces: Vec<Piece>,
    /// `trainer_spec.model_type`.
    pub algorithm: Algorithm,
    /// `trainer_spec.byte_fallback`.
    pub byte_fallback: bool,
    /// `trainer_spec.unk_id`.
    pub unk_id: i64,
    /// `trainer_spec.bos_id`; negative where there is none.
    pub bos_id: i64,
    /// `trainer_spec.eos_id`; negative where there is none.
    pub eos_id: i64,
    /// `trainer_spec.pad_id`; negative where there is none.
    pub pad_id: i64,
    /// `normalizer_spec.precompiled_charsmap`.
    pub precompiled_charsmap: Vec<u8>,
    /// `normalizer_spec.add_dummy_prefix`.
    pub add_dummy_prefix: bool,
    /// `normalizer_spec.remove_extra_whitespaces`.
    pub remove_extra_whitespaces: bool,
    /// The file's other fields: those of the message, of trainer_spec and of normalizer_spec.
    kept: [Vec<Field>; 3],
}

/// Field numbers of the file.
mod field {
    pub(super) const PIECES: u64 = 1;
    pub(super) const TRAINER: u64 = 2;
    pub(super) const NORMALIZER: u64 = 3;
    pub(super) const MODEL_TYPE: u64 = 3;
    pub(super) const BYTE_FALLBACK: u64 = 35;
    pub(super) const UNK_ID: u64 = 40;
    pub(super) const BOS_ID: u64 = 41;
    pub(super) const EOS_ID: u64 = 42;
    pub(super) const PAD_ID: u64 = 43;
    pub(super) const CHARSMAP: u64 = 2;
    pub(super) const DUMMY_PREFIX: u64 = 3;
    pub(super) const EXTRA_SPACES: u64 = 4;
}

impl SentencePieceModel {
    /// A model without the other fields, with SentencePiece's defaults for the ids.
    pub fn new(algorithm: Algorithm, pieces: Vec<Piece>) -> SentencePieceModel {
        SentencePieceModel {
            pieces,
            algorithm,
            byte_fallback: false,
            unk_id: 0,
            bos_id: 1,
            eos_id: 2,
            pad_id: -1,
            precompiled_charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            kept: Default::default(),
        }
    }

    /// Reads a `.model` file; `file` names it in errors.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<SentencePieceModel> {
        let mut model = SentencePieceModel::new(Algorithm::Unigram, Vec::new());
        let broken = |reason: String| TextError::broken(file, reason);
        for found in Reader::new(bytes) {
            let found = found.map_err(broken)?;
            match (found.number, &found.value) {
                (field::PIECES, Value::Bytes(piece)) => {
                    let id = model.pieces.len();
                    let piece =
                        parse_piece(piece).map_err(|reason| broken(format!("piece {id}: {reason}")))?;
                    model.pieces.push(piece);
                }
                (field::TRAINER, Value::Bytes(spec)) => {
                    model.read_trainer(spec).map_err(|reason| broken(format!("trainer_spec: {reason}")))?;
                }
                (field::NORMALIZER, Value::Bytes(spec)) => {
                    model
                        .read_normalizer(spec)
                        .map_err(|reason| broken(format!("normalizer_spec: {reason}")))?;
                }
                _ => model.kept[0].push(found),
            }
        }
        if model.pieces.is_empty() {
            return Err(broken("wanted a SentencePiece model, came no piece".to_owned()));
        }
        Ok(model)
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> std::result::Result<(), String> {
        for found in Reader::new(bytes) {
            let found = found?;
            let Value::Number(number) = found.value else {
                self.kept[1].push(found);
                continue;
            };
            // int32 fields are written as 64-bit two's complement.
            match found.number {
                field::MODEL_TYPE => self.algorithm = algorithm(number)?,
                field::BYTE_FALLBACK => self.byte_fallback = number != 0,
                field::UNK_ID => self.unk_id = number as i64,
                field::BOS_ID => self.bos_id = number as i64,
                field::EOS_ID => self.eos_id = number as i64,
                field::PAD_ID => self.pad_id = number as i64,
                _ => self.kept[1].push(found),
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, bytes: &[u8]) -> std::result::Result<(), String> {
        for found in Reader::new(bytes) {
            let found = found?;
            match (found.number, &found.value) {
                (field::CHARSMAP, Value::Bytes(map)) => self.precompiled_charsmap = map.clone(),
                (field::DUMMY_PREFIX, Value::Number(number)) => self.add_dummy_prefix = *number != 0,
                (field::EXTRA_SPACES, Value::Number(number)) => self.remove_extra_whitespaces = *number != 0,
                _ => self.kept[2].push(found),
            }
        }
        Ok(())
    }

    /// The bytes of a `.model` file: [`SentencePieceModel::parse`] gives the same value back.
    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in &self.pieces {
            let mut bytes = Vec::new();
            protobuf::write(&mut bytes, 1, &Value::Bytes(piece.text.as_bytes().to_vec()));
            protobuf::write(&mut bytes, 2, &Value::Four(piece.score.to_le_bytes()));
            if piece.kind != PieceKind::Normal {
                protobuf::write(&mut bytes, 3, &Value::Number(piece.kind as u64));
            }
            protobuf::write(&mut out, field::PIECES, &Value::Bytes(bytes));
        }
        let mut trainer = vec![
            (field::MODEL_TYPE, Value::Number(self.algorithm as u64)),
            (field::BYTE_FALLBACK, Value::Number(self.byte_fallback.into())),
            (field::UNK_ID, Value::Number(self.unk_id as u64)),
            (field::BOS_ID, Value::Number(self.bos_id as u64)),
            (field::EOS_ID, Value::Number(self.eos_id as u64)),
            (field::PAD_ID, Value::Number(self.pad_id as u64)),
        ];
        trainer.extend(self.kept[1].iter().map(|field| (field.number, field.value.clone())));
        let mut normalizer = vec![
            (field::CHARSMAP, Value::Bytes(self.precompiled_charsmap.clone())),
            (field::DUMMY_PREFIX, Value::Number(self.add_dummy_prefix.into())),
            (field::EXTRA_SPACES, Value::Number(self.remove_extra_whitespaces.into())),
        ];
        normalizer.extend(self.kept[2].iter().map(|field| (field.number, field.value.clone())));
        for (number, fields) in [(field::TRAINER, trainer), (field::NORMALIZER, normalizer)] {
            let mut bytes = Vec::new();
            fields.iter().for_each(|(number, value)| protobuf::write(&mut bytes, *number, value));
            protobuf::write(&mut out, number, &Value::Bytes(bytes));
        }
        self.kept[0].iter().for_each(|field| protobuf::write(&mut out, field.number, &field.value));
        out
    }

    /// The piece's id.
    pub fn id(&self, piece: &str) -> Option<u32> {
        self.pieces.iter().position(|candidate| candidate.text == piece).map(|id| id as u32)
    }
}

fn parse_piece(bytes: &[u8]) -> std::result::Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    for found in Reader::new(bytes) {
        let found = found?;
        match (found.number, found.value) {
            (1, Value::Bytes(text)) => {
                piece.text = String::from_utf8(text).map_err(|_| "its text is not UTF-8".to_owned())?;
            }
            (2, Value::Four(score)) => piece.score = f32::from_le_bytes(score),
            (3, Value::Number(kind)) => piece.kind = piece_kind(kind)?,
            _ => {}
        }
    }
    Ok(piece)
}

fn piece_kind(number: u64) -> std::result::Result<PieceKind, String> {
    use PieceKind::{Byte, Control, Normal, Unknown, Unused, UserDefined};
    let kinds = [Normal, Unknown, Control, UserDefined, Unused, Byte];
    kinds
        .into_iter()
        .find(|kind| *kind as u64 == number)
        .ok_or_else(|| format!("wanted a type from 1 to 6, came {number}"))
}

fn algorithm(number: u64) -> std::result::Result<Algorithm, String> {
    use Algorithm::{Bpe, Char, Unigram, Word};
    let known = [Unigram, Bpe, Word, Char];
    let found = known.into_iter().find(|algorithm| *algorithm as u64 == number);
    found.ok_or_else(|| format!("wanted a model_type from 1 to 4, came {number}"))
}
