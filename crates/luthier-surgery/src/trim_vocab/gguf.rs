//! A GGUF file cut to some of its tokens: its own names, order and metadata, whatever speaks of tokens aside.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use luthier_checkpoint::gguf::{Gguf, GgufArray, GgufValue};
use luthier_checkpoint::layout::{Part, Role, StackKind};
use luthier_checkpoint::lineage::LINEAGE_KEY;
use luthier_checkpoint::{Checkpoint, TensorInfo, TensorSource};
use luthier_text::Tokenizer;
use serde_json::{Map, Value};

use super::cut::Cut;
use super::{Prepared, cut};
use crate::writing::{Header, Job, Origin, checked_model, write_gguf};
use crate::{Error, Input, Result, fit};

const TOKENIZER_KEY: &str = "tokenizer.ggml.";

/// The file of an input that is one.
pub(super) fn opened(input: &Input) -> Result<Option<Arc<Gguf>>> {
    let place = &input.checkpoint.place;
    let is_gguf = place.is_file() && !luthier_checkpoint::torch::is_torch_name(place);
    if is_gguf { Ok(Some(Arc::new(Gguf::open(place)?))) } else { Ok(None) }
}

/// The output's tensors under the file's own names.
pub(super) struct View {
    /// The input as the origins name its tensors.
    input: Input,
    cut: Cut,
}

impl View {
    pub(super) fn described(&self, prepared: &Prepared) -> (Vec<TensorInfo>, Vec<Origin>) {
        (self.cut.infos().to_vec(), self.origins(prepared))
    }

    fn origins(&self, prepared: &Prepared) -> Vec<Origin> {
        let origin = |info: &TensorInfo| {
            let from = Origin::From { input: 0, name: info.name.clone() };
            if self.cut.cuts(&info.name) && !prepared.keeps_all() { from.then(&prepared.how()) } else { from }
        };
        self.cut.infos().iter().map(origin).collect()
    }
}

pub(super) fn view(prepared: &Prepared, input: &Input, file: &Arc<Gguf>) -> Result<View> {
    let source = Arc::clone(file) as Arc<dyn TensorSource>;
    let mut axes: HashMap<String, usize> = HashMap::new();
    for (name, axis) in cut::axes(&prepared.layout) {
        let role = prepared.layout.tensors.iter().find(|spec| spec.name == name).map(|spec| spec.role);
        if let Some(name) = role.and_then(luthier_arch::gguf::name_of) {
            axes.insert(name, axis);
        }
        axes.insert(name, axis);
    }
    // A file may carry the head that a tied embedding is.
    let head = Role { stack: StackKind::Decoder, layer: None, part: Part::Head };
    let tied = prepared.layout.ties.iter().find_map(|tie| axes.get(&tie.target).copied());
    if let (Some(axis), Some(name)) = (tied, luthier_arch::gguf::name_of(head)) {
        axes.entry(name).or_insert(axis);
    }
    let checkpoint = Checkpoint { tensors: Arc::clone(&source), ..input.checkpoint.clone() };
    let cut = Cut::new(source, axes, &prepared.selection.kept)?;
    Ok(View { input: Input { checkpoint, ..input.clone() }, cut })
}

/// Writes the trimmed file; before it gets its name it is read back and must give the tokenizer that was meant.
pub(super) fn write(
    prepared: &Prepared,
    input: &Input,
    file: &Arc<Gguf>,
    out: &Path,
    job: Job,
    measurements: Map<String, Value>,
) -> Result<()> {
    let view = view(prepared, input, file)?;
    let job = Job { inputs: vec![&view.input], origins: view.origins(prepared), ..job };
    let header = Header { metadata: metadata(prepared, file), measurements };
    write_gguf(&view.cut, header, out, prepared.options.force, job, |place| {
        let came = fit::tokenizer(&checked_model(place)?)?;
        let wanted = Checkpoint { side_files: prepared.side_files.clone(), ..input.checkpoint.clone() };
        match (fit::tokenizer(&wanted)?, came) {
            (Some(wanted), Some(came)) => same_tokens(&wanted, &came),
            _ => Err(Error::Check {
                check: "the written file".to_string(),
                wanted: "a tokenizer".to_string(),
                came: "none".to_string(),
            }),
        }
    })?;
    Ok(())
}

fn same_tokens(wanted: &Tokenizer, came: &Tokenizer) -> Result<()> {
    match fit::first_token_difference(wanted, came) {
        Some((id, [wanted, came])) => {
            Err(Error::Check { check: format!("token {id} of the written file"), wanted, came })
        }
        None => {
            let special = |tokenizer: &Tokenizer| {
                let around = (tokenizer.added_before().to_vec(), tokenizer.added_after().to_vec());
                format!("{:?}", [tokenizer.bos(), tokenizer.eos(), tokenizer.pad(), tokenizer.unk()])
                    + &format!(" {around:?}")
            };
            let (wanted, came) = (special(wanted), special(came));
            let check =
                "start, end, padding and unknown token of the written file, and what stands around a text"
                    .to_string();
            if wanted == came { Ok(()) } else { Err(Error::Check { check, wanted, came }) }
        }
    }
}

/// The file's metadata; lists of tokens are cut, ids renumbered, files that it carries whole replaced.
fn metadata(prepared: &Prepared, file: &Gguf) -> Vec<(String, GgufValue)> {
    let kept = &prepared.selection.kept;
    let names = file.get("tokenizer.ggml.tokens").and_then(GgufValue::as_strings).unwrap_or_default();
    let tokens: HashSet<&str> =
        kept.iter().filter_map(|id| names.get(*id as usize)).map(String::as_str).collect();
    let carried = |name: &str| {
        let found = prepared.side_files.iter().find(|file| file.name == name)?;
        Some(match String::from_utf8(found.bytes.clone()) {
            Ok(text) => GgufValue::String(text),
            Err(bytes) => GgufValue::Array(GgufArray::U8(bytes.into_bytes())),
        })
    };
    let value = |key: &str, value: &GgufValue| -> GgufValue {
        if key == luthier_arch::gguf::CONFIG_KEY {
            return GgufValue::String(Value::Object(prepared.config.clone()).to_string());
        }
        if let Some(new) = key.strip_prefix("luthier.file.").and_then(carried) {
            return new;
        }
        match key.strip_prefix(TOKENIZER_KEY) {
            Some("merges") => merges(value, &tokens),
            Some("tokens" | "scores" | "token_type") => rows(value, kept),
            Some(name) if name.ends_with("_token_id") => renumbered(value, kept, prepared.n_rows),
            _ if key == "tokenizer.huggingface.json" => carried("tokenizer.json").unwrap_or(value.clone()),
            _ if key.ends_with(".vocab_size") && value.as_u64() == Some(prepared.n_rows as u64) => {
                GgufValue::U32(kept.len() as u32)
            }
            _ => value.clone(),
        }
    };
    let own = file.metadata.iter().filter(|(key, _)| key != LINEAGE_KEY);
    own.map(|(key, old)| (key.clone(), value(key, old))).collect()
}

/// The entries of kept rows.
fn rows(value: &GgufValue, kept: &[u32]) -> GgufValue {
    fn chosen<T: Clone>(list: &[T], kept: &[u32]) -> Vec<T> {
        kept.iter().filter_map(|id| list.get(*id as usize).cloned()).collect()
    }
    match value {
        GgufValue::Array(GgufArray::String(list)) => GgufValue::Array(GgufArray::String(chosen(list, kept))),
        GgufValue::Array(GgufArray::F32(list)) => GgufValue::Array(GgufArray::F32(chosen(list, kept))),
        GgufValue::Array(GgufArray::I32(list)) => GgufValue::Array(GgufArray::I32(chosen(list, kept))),
        GgufValue::Array(GgufArray::U32(list)) => GgufValue::Array(GgufArray::U32(chosen(list, kept))),
        other => other.clone(),
    }
}

/// Merges whose halves and whole are kept. A token may itself begin with a space.
fn merges(value: &GgufValue, tokens: &HashSet<&str>) -> GgufValue {
    let is_kept = |merge: &&String| {
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let at = merge.get(first..).and_then(|rest| rest.find(' ')).map(|at| at + first);
        at.is_some_and(|at| {
            let (left, right) = (&merge[..at], &merge[at + 1..]);
            [left, right, &format!("{left}{right}")].iter().all(|token| tokens.contains(token))
        })
    };
    let list = value.as_strings().unwrap_or_default();
    GgufValue::Array(GgufArray::String(list.iter().filter(is_kept).cloned().collect()))
}

/// An id; one that no row has says that there is no such token, and stays so.
fn renumbered(value: &GgufValue, kept: &[u32], n_rows: usize) -> GgufValue {
    match value.as_u64() {
        Some(id) if id < n_rows as u64 => match kept.binary_search(&(id as u32)) {
            Ok(new) => GgufValue::U32(new as u32),
            Err(_) => value.clone(),
        },
        _ => value.clone(),
    }
}
