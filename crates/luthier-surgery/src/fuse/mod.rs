//! `luthier fuse-adapter BASE ADAPTER OUT [--scale S] [--dtype T]`: a LoRA adapter inside the weights of its base.
//!
//! Reads a model and adapters in PEFT's or llama.cpp's form. Writes W + S (W' - W), W' being what peft's `merge_and_unload` makes
//! of W: a folder, or a GGUF file. A base in few bits (ggml's types, bitsandbytes' nf4, fp4 and int8) is computed with as floats,
//! and rounded to the types that it had; tensors that the adapter does not touch keep their bytes. Guarantees: every tensor of the
//! base and the adapter is in the ledger. Refuses: adapters of another kind or of another base, halves of pairs, NaN. Identity:
//! scale 0 gives the base's bytes. Papers: arXiv:2106.09685 (LoRA), arXiv:2312.03732 (rsLoRA), arXiv:2402.09353 (DoRA). Example:
//! `luthier fuse-adapter model.Q4_1.gguf adapter fused.gguf`.

mod gguf;
mod requantized;
mod rounded;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use luthier_checkpoint::adapter::Adapter;
use luthier_checkpoint::gguf::is_gguf_name;
use luthier_checkpoint::{Checkpoint, Dtype, Gguf, LedgerSummary, TensorInfo, TensorSource};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::convert::gguf as model_as_gguf;
use crate::fused::{Strength, fused_with};
use crate::plan::Plan;
use crate::view::{Cast, folder_type};
use crate::writing::{Header, Job, Origin, checked_model, write_folder, write_gguf};
use crate::{Error, Input, Result, config, fit};
use gguf::FileAgain;
use requantized::Requantized;
use rounded::Rounded;

/// How adapters are fused.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much of each adapter; 1 is as it was trained.
    pub scale: f64,
    /// The type of all float weights; none: the base's types.
    pub dtype: Option<Dtype>,
    /// The user insists that the output has the base's quantised types.
    pub requantize: bool,
    /// The text that the written model is compared on; the record names it.
    pub text: Option<PathBuf>,
    /// Whether an existing output is replaced.
    pub force: bool,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Report {
    /// Tensors of the output.
    pub tensors: usize,
    /// Those that are byte for byte the base's.
    pub copied_tensors: usize,
    /// Those that the adapters changed.
    pub fused_tensors: usize,
    /// What became of all tensors.
    pub ledger: LedgerSummary,
    /// What to know.
    pub notes: Vec<String>,
}

/// A model with its adapters, before anything is written.
pub struct Fusion {
    base: Input,
    adapters: Vec<String>,
    /// As the parts that it is made of, what changes in the type in which it is written or wider.
    input: Input,
    changed: HashSet<String>,
    form: Form,
    notes: Vec<String>,
    /// Whether what changed is rounded to few bits.
    is_rounded: bool,
}

/// How the output is written.
enum Form {
    /// A folder of floats.
    Folder,
    /// A GGUF file that is described from the config.
    Gguf,
    /// The base's GGUF file with other values.
    File(Arc<Gguf>),
    /// The base's folder of bitsandbytes' with other values.
    BitsAndBytes(Arc<Requantized>),
}

/// A place's adapters under the names that the user gave.
pub type Named = (String, Adapter);

impl Fusion {
    /// Fuses `adapters` into `base` one after the other, for an output at `out`. Nothing but headers is read, and the values of a
    /// base of bitsandbytes' whose scales are rounded.
    pub fn new(base: Input, adapters: Vec<Named>, out: &Path, options: &Options) -> Result<Fusion> {
        let place = base.checkpoint.place.clone();
        let file = match place.is_file() && Gguf::is_gguf(&place) {
            true => Some(Arc::new(Gguf::open(&place)?)),
            false => None,
        };
        let is_block = |info: &TensorInfo| info.dtype.block().0 > 1;
        let has_blocks = file.as_ref().is_some_and(|file| file.infos().iter().any(is_block));
        let is_rounded_folder = Requantized::is_such(&place)?;
        let keeps_file = file.is_some() && is_gguf_name(out) && options.dtype.is_none();
        let keeps_folder = is_rounded_folder && !is_gguf_name(out) && options.dtype.is_none();
        let is_rounded = keeps_file && has_blocks || keeps_folder;
        if options.requantize && !is_rounded {
            return Err(Error::Use(not_requantized(&base.label, has_blocks, is_rounded_folder, options)));
        }
        let mut notes = known(&base)?;
        let strength =
            Strength { scale: options.scale, is_wide: keeps_file || keeps_folder || options.dtype.is_some() };
        let (input, changed, adapters) = with_adapters(&base, adapters, strength, &mut notes)?;
        if has_blocks && !is_gguf_name(out) && options.dtype.is_none() {
            notes.push(
                "a folder does not hold the base's quantised types: they become f32, or what --dtype says"
                    .to_string(),
            );
        }
        let form = match file {
            Some(file) if keeps_file => Form::File(file),
            _ if keeps_folder => Form::BitsAndBytes(Arc::new(Requantized::new(
                &place,
                Arc::clone(&input.checkpoint.tensors),
                &changed,
            )?)),
            _ if is_gguf_name(out) => Form::Gguf,
            _ => Form::Folder,
        };
        Ok(Fusion { base, adapters, input, changed, form, notes, is_rounded })
    }

    /// Whether what changed is rounded to few bits, so that it is to be compared with what it should be.
    pub fn is_rounded(&self) -> bool {
        self.is_rounded && !self.changed.is_empty()
    }

    /// What the user should know.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The model before rounding: what the adapters change in f32, the rest as the base has it.
    pub fn exact(&self) -> Checkpoint {
        self.input.checkpoint.clone()
    }

    /// The model that is written, under its own names.
    pub fn written(&self, options: &Options) -> Result<Checkpoint> {
        let exact = &self.input.checkpoint;
        let tensors: Arc<dyn TensorSource> = match &self.form {
            Form::File(_) => Arc::new(self.rounded()),
            Form::BitsAndBytes(parts) => return parts.restored(exact),
            Form::Folder | Form::Gguf => {
                Arc::new(Cast::new(Arc::clone(&exact.tensors), |info| folder_type(info.dtype, options.dtype)))
            }
        };
        Ok(Checkpoint { tensors, ..exact.clone() })
    }

    /// What `run` would write.
    pub fn plan(&self, options: &Options) -> Result<Plan> {
        let (infos, origins) = self.listed(options)?;
        let plan = Plan::new(&infos, origins.iter().map(Origin::describe).collect(), self.notes.clone());
        let values = |info: &&TensorInfo| info.shape.iter().product::<usize>();
        let exact = self.input.checkpoint.tensors.infos();
        let changed = exact.iter().filter(|info| self.changed.contains(&info.name));
        let changed = changed.map(|info| values(&info)).max().unwrap_or(0);
        let largest = infos.iter().filter_map(|info| info.dtype.size_bytes(&info.shape)).max().unwrap_or(0);
        let pair = self.input.derived.as_ref().map_or(0, |derived| derived.size_bytes);
        // Values, sums and bytes of a weight that changes, its factors, and tensors on their way to the disk.
        Ok(Plan { memory_bytes: 16 * changed + pair + 4 * largest + (4 << 20), ..plan })
    }

    /// Writes the model to `out`, with what was measured of it.
    pub fn run(&self, out: &Path, options: &Options, measurements: Map<String, Value>) -> Result<Report> {
        let ledger = match &self.form {
            Form::File(file) => {
                let view = self.file_again(file)?;
                let header = Header { metadata: gguf::metadata(file, &self.changed), measurements };
                let stored = self.with_stored(Arc::clone(file) as Arc<dyn TensorSource>);
                let origins = view.origins(&|name| self.input.sources(name));
                let mut job = Job { inputs: stored.iter().collect(), ..self.job(options, origins) };
                for (part, name, _) in &mut job.dropped {
                    *name = view.name_in(*part, std::mem::take(name));
                }
                write_gguf(&view, header, out, options.force, job, |place| checked_model(place).map(drop))?
            }
            Form::BitsAndBytes(parts) => self.write_parts(parts, out, options, measurements)?,
            Form::Gguf => {
                let model = self.input.checkpoint.clone();
                let job = self.job(options, self.origins(model.tensors.infos()));
                model_as_gguf::write_model(&model, options.dtype, out, options.force, job, measurements)?
            }
            Form::Folder => self.write_floats(out, options, measurements)?,
        };
        Ok(Report {
            tensors: ledger.output_tensors,
            copied_tensors: ledger.copied,
            fused_tensors: self.changed.len(),
            ledger,
            notes: self.notes.clone(),
        })
    }

    /// The base's file with the weights that change.
    fn file_again(&self, file: &Arc<Gguf>) -> Result<FileAgain> {
        FileAgain::new(Arc::clone(file), &self.base.checkpoint.config, self.rounded(), &self.changed)
    }

    fn rounded(&self) -> Rounded {
        Rounded::new(
            Arc::clone(&self.input.checkpoint.tensors),
            Arc::clone(&self.base.checkpoint.tensors),
            self.changed.clone(),
        )
    }

    fn write_floats(
        &self,
        out: &Path,
        options: &Options,
        measurements: Map<String, Value>,
    ) -> Result<LedgerSummary> {
        let base = &self.base.checkpoint;
        let source = Arc::clone(&self.input.checkpoint.tensors);
        let view = Cast::new(source, |info| folder_type(info.dtype, options.dtype));
        let config = match view.infos() == base.tensors.infos() && base.place.is_dir() {
            true => base.config.clone(),
            false => config::with_dtype(&base.config, view.infos()),
        };
        let job = self.job(options, self.origins(view.infos()));
        let model = Checkpoint { config, tensors: Arc::new(view), ..base.clone() };
        write_folder(&model, out, options.force, job, |staged| {
            known_layout(staged)?;
            Ok(measurements)
        })
    }

    fn write_parts(
        &self,
        parts: &Arc<Requantized>,
        out: &Path,
        options: &Options,
        measurements: Map<String, Value>,
    ) -> Result<LedgerSummary> {
        let view = Arc::clone(parts) as Arc<dyn TensorSource>;
        let model =
            Checkpoint { config: parts.config.clone(), tensors: view, ..self.base.checkpoint.clone() };
        let origins = parts.origins(&|name| self.input.sources(name));
        let stored = self.with_stored(Arc::clone(&parts.stored));
        let job = Job { inputs: stored.iter().collect(), ..self.job(options, origins) };
        write_folder(&model, out, options.force, job, |staged| {
            known_layout(staged)?;
            Ok(measurements)
        })
    }

    /// The tensors of the output and where they come from.
    fn listed(&self, options: &Options) -> Result<(Vec<TensorInfo>, Vec<Origin>)> {
        let tensors = &self.input.checkpoint.tensors;
        Ok(match &self.form {
            Form::Folder => {
                let view = Cast::new(Arc::clone(tensors), |info| folder_type(info.dtype, options.dtype));
                (view.infos().to_vec(), self.origins(view.infos()))
            }
            Form::Gguf => model_as_gguf::planned_model(
                &self.input.checkpoint,
                options.dtype,
                &self.origins(tensors.infos()),
            )?,
            Form::File(file) => {
                let view = self.file_again(file)?;
                let origins = view.origins(&|name| self.input.sources(name));
                (view.infos().to_vec(), origins)
            }
            Form::BitsAndBytes(parts) => {
                (parts.infos().to_vec(), parts.origins(&|name| self.input.sources(name)))
            }
        })
    }

    /// Where tensors under the base's names come from.
    fn origins(&self, infos: &[TensorInfo]) -> Vec<Origin> {
        let origin = |info: &TensorInfo| {
            let mut sources = self.input.sources(&info.name);
            match sources.len() {
                1 => {
                    let (input, name) = sources.remove(0);
                    Origin::From { input, name }
                }
                _ => Origin::Merged { sources, how: "with an adapter".to_string() },
            }
        };
        infos.iter().map(origin).collect()
    }

    fn job<'j>(&'j self, options: &Options, origins: Vec<Origin>) -> Job<'j> {
        let recipe = json!({
            "base": self.base.label, "adapter": self.adapters.first(), "then": self.adapters.get(1..),
            "scale": options.scale, "dtype": options.dtype.map(|dtype| dtype.name().to_ascii_lowercase()),
            "requantize": options.requantize, "text": options.text,
        });
        Job {
            verb: "fuse-adapter",
            recipe,
            seed: None,
            inputs: self.input.parts(),
            origins,
            dropped: self.input.unused(),
        }
    }

    /// The parts, the base's tensors under the names of its files.
    fn with_stored(&self, stored: Arc<dyn TensorSource>) -> Vec<Input> {
        let mut parts: Vec<Input> = self.input.parts().into_iter().cloned().collect();
        parts[0].checkpoint.tensors = stored;
        parts
    }
}

/// Why there is nothing to round.
fn not_requantized(label: &str, has_blocks: bool, is_rounded_folder: bool, options: &Options) -> String {
    match (options.dtype, has_blocks || is_rounded_folder) {
        (Some(dtype), _) => {
            format!("--requantize: --dtype {dtype} asks for another type; leave one of them out")
        }
        (None, false) => format!("--requantize: {label} is not quantised; leave it out"),
        (None, true) if has_blocks => {
            "--requantize: the base's types are held by GGUF files alone; give OUT a name that ends in .gguf"
                .to_string()
        }
        (None, true) => {
            "--requantize: a GGUF file does not hold bitsandbytes' types; name a folder".to_string()
        }
    }
}

/// The base with all adapters, the names of what they change, and the adapters' labels.
fn with_adapters(
    base: &Input,
    adapters: Vec<Named>,
    strength: Strength,
    notes: &mut Vec<String>,
) -> Result<(Input, HashSet<String>, Vec<String>)> {
    let (mut input, mut changed, mut labels) = (base.clone(), HashSet::new(), Vec::new());
    for (label, adapter) in adapters {
        notes.extend(adapter.notes.iter().cloned());
        let (fused, own) = fused_with(input, &label, &base.label, adapter, strength)?;
        input = fused;
        changed.extend(own);
        labels.push(label);
    }
    Ok((input, changed, labels))
}

/// Checks a base whose architecture is known; a note for others.
fn known(base: &Input) -> Result<Vec<String>> {
    Ok(match known_layout(&base.checkpoint)? {
        true => Vec::new(),
        false => vec![format!(
            "the architecture of {} is not known: weights are not compared with the config",
            base.label
        )],
    })
}

fn known_layout(checkpoint: &Checkpoint) -> Result<bool> {
    match fit::checked_layout(checkpoint) {
        Ok(_) => Ok(true),
        Err(Error::Architecture(luthier_arch::Error::UnknownArchitecture { .. })) => Ok(false),
        Err(_) if !checkpoint.config.contains_key("model_type") => Ok(false),
        Err(problem) => Err(problem),
    }
}

/// Where tensors under a name of the model come from, as parts' numbers and names.
pub(crate) type Sources<'s> = &'s dyn Fn(&str) -> Vec<(usize, String)>;
