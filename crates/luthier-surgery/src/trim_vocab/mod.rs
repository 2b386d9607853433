//! `luthier trim-vocab MODEL OUT --corpus FILE...`: a model with the tokens that its texts need, and no others.
//!
//! Reads a model folder or a GGUF file, and texts. Writes a folder, or a GGUF file where OUT ends in `.gguf`: every tensor
//! with an axis of tokens cut to the kept rows, tokenizer, config and generation settings renumbered; quantised rows are cut
//! as they are, none is rounded again (a folder cannot hold them: they become F32, as convert has it). Kept: added and
//! special tokens, bytes, sentinels, what chat templates write, ids that the config names, and whatever these and the
//! chosen tokens are made of. Rows without a token (padding) go, unless `--keep` or `--multiple-of` asks for more rows than
//! there are tokens. Guarantees: text whose tokens are all kept is segmented as before, and its logits for kept tokens are
//! those of the input, checked before the output gets its name. Leaves the input alone. Refuses: texts without a word, a
//! number below the tokens that must stay, tokenizers of an unknown kind or that do not fit the model, tied weights that
//! differ. Identity: all rows kept is the same model.
//! Papers: arXiv:2305.15020 (lm-vocab-trimmer). Example: `luthier trim-vocab model out --corpus id.txt --keep 20000`.

mod card;
mod count;
mod cut;
mod gguf;
mod ids;
mod proof;
mod select;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use luthier_checkpoint::gguf::is_gguf_name;
use luthier_checkpoint::layout::Layout;
use luthier_checkpoint::{Checkpoint, SideFile, TensorInfo, TensorSource};
use luthier_text::corpus::Source;
use luthier_text::trim::Trimmer;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::convert::gguf::{planned_model, write_model};
use crate::convert::restore;
use crate::plan::Plan;
use crate::view::{Cast, find, folder_type};
use crate::writing::{Job, Origin, write_folder};
use crate::{Error, Input, Result, config, fit};
pub use card::Card;
pub use count::CorpusReport;
use count::Ranking;
use cut::Cut;
pub use proof::Proof;
use select::{Selection, Wanted};

/// How many tokens are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wish {
    /// So many rows in all.
    Keep(usize),
    /// The most frequent tokens that make up this share of the texts.
    Coverage(f64),
    /// Tokens that the texts use so often or more.
    MinCount(u64),
}

/// A text whose most frequent tokens are kept too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Also {
    /// What the report calls it: a language, mostly.
    pub name: String,
    /// The text.
    pub file: PathBuf,
    /// How many of its tokens.
    pub tokens: usize,
}

impl Also {
    /// `LANG:FILE:N`. Only FILE may hold a colon.
    pub fn parse(text: &str) -> std::result::Result<Also, String> {
        let wanted = || format!("wanted LANG:FILE:N, such as en:english.txt:10000, came {text:?}");
        let (name, rest) = text.split_once(':').ok_or_else(wanted)?;
        let (file, number) = rest.rsplit_once(':').ok_or_else(wanted)?;
        let tokens: usize = number.replace('_', "").parse().map_err(|_| wanted())?;
        let is_name = name.chars().all(|char| char.is_alphanumeric() || "-_.".contains(char));
        if name.is_empty() || !is_name || file.is_empty() || tokens == 0 {
            return Err(wanted());
        }
        Ok(Also { name: name.to_string(), file: PathBuf::from(file), tokens })
    }

    /// As [`Also::parse`] reads it.
    fn text(&self) -> String {
        format!("{}:{}:{}", self.name, self.file.display(), self.tokens)
    }
}

/// How a vocabulary is trimmed.
#[derive(Clone, Debug)]
pub struct Options {
    /// The texts: `.jsonl` gives the `text` of each line, other files are a document each.
    pub corpus: Vec<PathBuf>,
    /// How many of their tokens are kept.
    pub wish: Wish,
    /// Further texts, each with a number of its own.
    pub also: Vec<Also>,
    /// Rows are rounded up to a multiple of this by keeping more tokens.
    pub multiple_of: usize,
    /// Texts that the proof is made on; none: those that were counted.
    pub held: Vec<PathBuf>,
    /// Whether an existing output is replaced.
    pub force: bool,
}

impl Options {
    fn recipe(&self, model: &str) -> Value {
        let (keep, coverage, min_count) = match self.wish {
            Wish::Keep(n) => (Some(n), None, None),
            Wish::Coverage(share) => (None, Some(share), None),
            Wish::MinCount(n) => (None, None, Some(n)),
        };
        let also: Vec<String> = self.also.iter().map(Also::text).collect();
        json!({
            "model": model, "corpus": self.corpus, "keep": keep, "coverage": coverage, "min_count": min_count,
            "also": also, "multiple_of": self.multiple_of, "held": self.held,
        })
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How the tokenizer cuts words.
    pub tokenizer: &'static str,
    /// The model as it was, in lm-vocab-trimmer's terms.
    pub before: Card,
    /// The model as it is.
    pub after: Card,
    /// Why tokens stay: how many for each reason, each counted once.
    pub kept: BTreeMap<String, usize>,
    /// Rows of the input that no token had.
    pub padding_rows: usize,
    /// Rows of the output that no token has.
    pub kept_padding_rows: usize,
    /// The texts that were counted.
    pub corpora: Vec<CorpusReport>,
    /// That nothing else changed.
    pub proof: Proof,
    /// What to know.
    pub notes: Vec<String>,
}

/// What `run` would write. Reads texts and tokenizer, and of the weights their headers.
pub fn plan(input: &Input, out: &Path, options: &Options) -> Result<Plan> {
    let prepared = Prepared::new(input, options)?;
    let mut notes = prepared.notes.clone();
    notes.push(format!("{} of {} rows stay", prepared.selection.kept.len(), prepared.n_rows));
    let (infos, origins) = if is_gguf_name(out) {
        match gguf::opened(input)? {
            Some(file) => gguf::view(&prepared, input, &file)?.described(&prepared),
            None => {
                let (model, origins) = prepared.model()?;
                planned_model(&model, None, &origins)?
            }
        }
    } else {
        let (model, origins) = prepared.model()?;
        (model.tensors.infos().to_vec(), origins)
    };
    let from = origins.iter().map(Origin::describe).collect();
    Ok(Plan { memory_bytes: prepared.memory_bytes(&infos), ..Plan::new(&infos, from, notes) })
}

/// Writes the trimmed model to `out`.
pub fn run(input: &Input, out: &Path, options: &Options) -> Result<Report> {
    let prepared = Prepared::new(input, options)?;
    let (model, origins) = prepared.model()?;
    let job = Job {
        verb: "trim-vocab",
        recipe: options.recipe(&input.label),
        seed: None,
        inputs: vec![input],
        origins,
        dropped: Vec::new(),
    };
    let mut proof = None;
    let mut check = |made: &Checkpoint| -> Result<Map<String, Value>> {
        let found = proof::prove(&prepared, made)?;
        let measured = json!({
            "before": prepared.before, "after": prepared.after, "proof": found,
        });
        proof = Some(found);
        Ok(measured.as_object().cloned().unwrap_or_default())
    };
    match gguf::opened(input)?.filter(|_| is_gguf_name(out)) {
        Some(file) => {
            let measurements = check(&model)?;
            gguf::write(&prepared, input, &file, out, job, measurements)?;
        }
        None if is_gguf_name(out) => {
            let measurements = check(&model)?;
            write_model(&model, None, out, options.force, job, measurements)?;
        }
        None => _ = write_folder(&model, out, options.force, job, check)?,
    }
    let proof = proof.expect("nothing is written without the proof");
    Ok(prepared.report(proof))
}

/// Everything that is decided before a weight is read.
struct Prepared<'p> {
    input: &'p Input,
    options: &'p Options,
    layout: Layout,
    trimmer: Trimmer,
    /// Rows of the input.
    n_rows: usize,
    selection: Selection,
    corpora: Vec<CorpusReport>,
    config: Map<String, Value>,
    side_files: Vec<SideFile>,
    before: Card,
    after: Card,
    notes: Vec<String>,
}

impl<'p> Prepared<'p> {
    fn new(input: &'p Input, options: &'p Options) -> Result<Prepared<'p>> {
        let checkpoint = &input.checkpoint;
        let files: BTreeMap<String, Vec<u8>> =
            checkpoint.side_files.iter().map(|file| (file.name.clone(), file.bytes.clone())).collect();
        let trimmer = Trimmer::new(&files)?;
        let layout = fit::checked_layout(checkpoint)?;
        let n_rows = cut::rows(&layout)?;
        let sources: Vec<Source> = options.corpus.iter().cloned().map(Source::File).collect();
        let main = Ranking::count(trimmer.tokenizer(), "corpus", &sources)?;
        let count = |also: &Also| -> Result<(usize, Ranking)> {
            let source = Source::File(also.file.clone());
            Ok((also.tokens, Ranking::count(trimmer.tokenizer(), &also.name, &[source])?))
        };
        let also = options.also.iter().map(count).collect::<Result<Vec<_>>>()?;
        let named = ids::named(&checkpoint.config, &checkpoint.side_files, n_rows);
        let wanted = Wanted { wish: options.wish, multiple_of: options.multiple_of, n_rows, named: &named };
        let (selection, mut notes) = select::select(&trimmer, &main, &also, &wanted)?;
        let trimmed = trimmer.trim(&selection.kept)?;
        let before = Card::of(&layout);
        let (config, dropped) = ids::config(&checkpoint.config, n_rows, &selection.kept);
        notes.extend(dropped);
        let after = before.with_rows(selection.kept.len());
        let corpora = [&main].into_iter().chain(also.iter().map(|(_, ranking)| ranking));
        let corpora = corpora.map(|ranking| ranking.report(&selection.kept)).collect();
        let mut side_files = Vec::new();
        for file in &checkpoint.side_files {
            let bytes = trimmed.get(&file.name).cloned().unwrap_or_default();
            let (bytes, dropped) = match file.name.as_str() {
                "generation_config.json" => ids::generation(&bytes, n_rows, &selection.kept)?,
                "README.md" if selection.kept.len() < n_rows => {
                    (card::readme(&bytes, &input.label, &before, &after), Vec::new())
                }
                _ => (bytes, Vec::new()),
            };
            notes.extend(dropped);
            side_files.push(SideFile { name: file.name.clone(), bytes });
        }
        Ok(Prepared {
            input,
            options,
            layout,
            trimmer,
            n_rows,
            selection,
            corpora,
            config,
            side_files,
            before,
            after,
            notes,
        })
    }

    /// Whether every row stays.
    fn keeps_all(&self) -> bool {
        self.selection.kept.len() == self.n_rows
    }

    /// How the ledger describes a cut.
    fn how(&self) -> String {
        format!("{} of {} rows of tokens kept", self.selection.kept.len(), self.n_rows)
    }

    /// The model as a folder holds it, and where its tensors come from.
    fn model(&self) -> Result<(Checkpoint, Vec<Origin>)> {
        let checkpoint = &self.input.checkpoint;
        let restored = restore::folder_tensors(checkpoint)?;
        let source: Arc<dyn TensorSource> = match &restored {
            Some(restored) => Arc::clone(restored) as Arc<dyn TensorSource>,
            None => Arc::clone(&checkpoint.tensors),
        };
        let stored = source.infos().to_vec();
        let cast = Cast::new(source, |info| folder_type(info.dtype, None));
        let types_change = cast.infos() != stored;
        let cut = Cut::new(Arc::new(cast), cut::axes(&self.layout), &self.selection.kept)?;
        let config = match types_change || (restored.is_none() && checkpoint.place.is_file()) {
            true => config::with_dtype(&self.config, cut.infos()),
            false => self.config.clone(),
        };
        let mut origins = Vec::with_capacity(stored.len());
        for info in cut.infos() {
            let name = info.name.clone();
            let was = find(checkpoint.tensors.infos(), &name)?.dtype;
            let origin = match &restored {
                Some(restored) if restored.differs(&name) && was == info.dtype => {
                    let how = "as it was before it became GGUF".to_string();
                    Origin::Changed { input: 0, name: name.clone(), how }
                }
                _ => Origin::From { input: 0, name: name.clone() },
            };
            origins.push(match (cut.cuts(&name) && !self.keeps_all(), was == info.dtype) {
                (true, true) => origin.then(&self.how()),
                (true, false) => origin.then(&format!("{was} as {}; {}", info.dtype, self.how())),
                (false, _) => origin,
            });
        }
        let side_files = self.side_files.clone();
        let place = checkpoint.place.clone();
        Ok((Checkpoint { place, config, tensors: Arc::new(cut), side_files }, origins))
    }

    /// What `run` holds at most: the largest tensor and the one on its way to the disk, each whole and widened where it
    /// was quantised, the logits of the proof, the texts, and the tokenizers before and after in memory and as JSON.
    fn memory_bytes(&self, infos: &[TensorInfo]) -> usize {
        let size = |info: &TensorInfo| info.dtype.size_bytes(&info.shape).unwrap_or(0);
        let largest = infos.iter().map(size).max().unwrap_or(0);
        let widened = |info: &TensorInfo| {
            let is_block = info.dtype.block().0 > 1;
            if is_block { 4 * info.shape.iter().product::<usize>() } else { size(info) }
        };
        let source = self.input.checkpoint.tensors.infos().iter().map(widened).max().unwrap_or(0);
        let texts = self.options.corpus.iter().chain(self.options.also.iter().map(|also| &also.file));
        let texts = texts.chain(&self.options.held).filter_map(|path| std::fs::metadata(path).ok());
        let texts: u64 = texts.map(|file| file.len()).sum();
        let tokenizer: usize = self.side_files.iter().map(|file| file.bytes.len()).sum::<usize>()
            + self.input.checkpoint.side_files.iter().map(|file| file.bytes.len()).sum::<usize>();
        2 * largest + source + proof::memory_bytes(self) + 2 * texts as usize + 24 * tokenizer + (32 << 20)
    }

    fn report(self, proof: Proof) -> Report {
        let n_tokens =
            (0..self.n_rows as u32).filter(|id| self.trimmer.tokenizer().token(*id).is_some()).count();
        let is_padding = |id: &&u32| self.trimmer.tokenizer().token(**id).is_none();
        Report {
            tokenizer: self.trimmer.kind().name(),
            padding_rows: self.n_rows - n_tokens,
            kept_padding_rows: self.selection.kept.iter().filter(is_padding).count(),
            kept: self.selection.reasons,
            before: self.before,
            after: self.after,
            corpora: self.corpora,
            proof,
            notes: self.notes,
        }
    }
}

/// A refusal of this verb's options.
fn refused(what: String) -> Error {
    Error::Use(what)
}
