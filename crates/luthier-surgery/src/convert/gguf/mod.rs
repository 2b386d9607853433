//! A model as a GGUF file.

mod view;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use luthier_arch::gguf::GgufForm;
use luthier_checkpoint::gguf::{Gguf, GgufValue};
use luthier_checkpoint::layout::Layout;
use luthier_checkpoint::sentence::SentenceModules;
use luthier_checkpoint::{Checkpoint, Dtype, LedgerSummary, Lineage, TensorInfo, TensorSource};
use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;
use serde_json::{Map, Value};

pub(super) use self::view::View;
use super::model_name::size_label;
use super::{Options, card, job, restore};
use crate::view::Cast;
use crate::writing::{Header, Job, Origin, checked_model, write_gguf};
use crate::{Input, Result, fit};

/// The key that says in which types most tensors are, by llama.cpp's numbers.
pub(crate) const FILE_TYPE_KEY: &str = "general.file_type";

/// Matrices that llama.cpp wants in f32.
const NOT_QUANTISED: [&str; 2] = ["position_embd.weight", "token_types.weight"];

/// The tensors of the GGUF file that is made of a model, and where they come from.
pub(super) fn planned(input: &Input, options: &Options) -> Result<(Vec<TensorInfo>, Vec<Origin>)> {
    let assembled = assemble(input, options.dtype)?;
    Ok((assembled.view().infos().to_vec(), assembled.origins))
}

/// The same for a model that a verb makes, whose tensors come from `origins`.
pub(crate) fn planned_model(
    model: &Checkpoint,
    dtype: Option<Dtype>,
    origins: &[Origin],
) -> Result<(Vec<TensorInfo>, Vec<Origin>)> {
    let view = View::new(model, form(model)?, dtype)?;
    let origins = view.origins(origins);
    Ok((view.infos, origins))
}

/// Writes the model to `out`.
pub(super) fn write(input: &Input, out: &Path, options: &Options) -> Result<LedgerSummary> {
    let assembled = assemble(input, options.dtype)?;
    let mut metadata = assembled.metadata.clone();
    metadata.extend(assembled.memory_of_source()?);
    let mut job = job(&assembled.input, options, assembled.origins.clone());
    job.dropped.clone_from(&assembled.dropped);
    let header = Header { metadata, measurements: Map::new() };
    write_gguf(assembled.view(), header, out, options.force, job, |place| checked_model(place).map(drop))
}

/// Writes a model that a verb makes to `out`; the job's origins are those of the model's tensors.
pub(crate) fn write_model(
    model: &Checkpoint,
    dtype: Option<Dtype>,
    out: &Path,
    force: bool,
    mut job: Job,
    measurements: Map<String, Value>,
) -> Result<LedgerSummary> {
    let (view, mut metadata) = described(model, dtype, &job.inputs)?;
    metadata.extend(restore::metadata(&view)?);
    let origins = view.origins(&job.origins);
    job.dropped.extend(dropped(&job.origins, &origins));
    job.origins = origins;
    let header = Header { metadata, measurements };
    write_gguf(&view, header, out, force, job, |place| checked_model(place).map(drop))
}

/// A model in the form of a GGUF file, before anything is written.
pub(crate) struct Assembled {
    /// The input as the origins name its tensors.
    pub(crate) input: Input,
    /// All keys but the lineage and those that remember the source's vectors.
    pub(crate) metadata: Vec<(String, GgufValue)>,
    /// Where each tensor comes from, in the view's order.
    pub(crate) origins: Vec<Origin>,
    /// Input, tensor and reason of what is left out.
    pub(crate) dropped: Vec<(usize, String, String)>,
    form: Form,
}

enum Form {
    /// A folder's tensors under GGUF's names.
    Model(View),
    /// A GGUF file's own.
    File(Cast),
}

impl Assembled {
    /// The file's tensors.
    pub(crate) fn view(&self) -> &dyn TensorSource {
        match &self.form {
            Form::Model(view) => view,
            Form::File(cast) => cast,
        }
    }

    /// The bytes of a tensor of the view; whoever reads them looks for NaN and infinity.
    pub(crate) fn read_unchecked(&self, name: &str) -> Result<SharedBytes> {
        Ok(match &self.form {
            Form::Model(view) => view.read_unchecked(name)?,
            Form::File(cast) => cast.read_unchecked(name)?,
        })
    }

    /// The keys from which vectors become again what they were; reads those vectors.
    pub(crate) fn memory_of_source(&self) -> Result<Vec<(String, GgufValue)>> {
        match &self.form {
            Form::Model(view) => restore::metadata(view),
            Form::File(_) => Ok(Vec::new()),
        }
    }
}

/// A model in the form of a GGUF file, floats in `dtype` where one is given; from headers and side files alone.
pub(crate) fn assemble(input: &Input, dtype: Option<Dtype>) -> Result<Assembled> {
    if let Some(gguf) = opened(input)? {
        return Ok(assembled_file(input, Arc::new(gguf), dtype));
    }
    let kept = input.checkpoint.tensors.infos().iter();
    let kept: Vec<Origin> = kept.map(|info| Origin::From { input: 0, name: info.name.clone() }).collect();
    let (view, metadata) = described(&input.checkpoint, dtype, &[input])?;
    let origins = view.origins(&kept);
    let dropped = dropped(&kept, &origins);
    Ok(Assembled { input: input.clone(), metadata, origins, dropped, form: Form::Model(view) })
}

/// A GGUF file again: its own names, metadata and order, only types change.
fn assembled_file(input: &Input, gguf: Arc<Gguf>, dtype: Option<Dtype>) -> Assembled {
    let mut metadata = gguf.metadata.clone();
    metadata.retain(|(key, _)| key != luthier_checkpoint::lineage::LINEAGE_KEY);
    let source: Arc<dyn TensorSource> = gguf;
    // A matrix in f32 beside others in another type is so on purpose.
    let view = Cast::new(Arc::clone(&source), |info| {
        file_type(info, NOT_QUANTISED.contains(&info.name.as_str()), dtype)
    });
    if view.infos() != source.infos() {
        for (key, value) in &mut metadata {
            if key == FILE_TYPE_KEY {
                *value = GgufValue::U32(file_type_id(view.infos()));
            }
        }
    }
    let origins =
        view.infos().iter().map(|info| Origin::From { input: 0, name: info.name.clone() }).collect();
    // The ledger speaks of the file's own names here.
    let input =
        Input { checkpoint: Checkpoint { tensors: source, ..input.checkpoint.clone() }, ..input.clone() };
    Assembled { input, metadata, origins, dropped: Vec::new(), form: Form::File(view) }
}

/// A model under GGUF's names, and the metadata that follow from its config and side files.
fn described(
    model: &Checkpoint,
    dtype: Option<Dtype>,
    inputs: &[&Input],
) -> Result<(View, Vec<(String, GgufValue)>)> {
    let form = form(model)?;
    let layout = fit::checked_layout(model)?;
    let mut metadata = general(model, inputs, layout.parameters());
    if let Some(label) = size_label_of_experts(&layout) {
        // A size that the name says stays.
        let counted = GgufValue::String(size_label(layout.parameters()));
        let labels =
            metadata.iter_mut().filter(|(key, value)| key == "general.size_label" && *value == counted);
        labels.for_each(|(_, value)| *value = GgufValue::String(label.clone()));
    }
    metadata.extend(form.metadata.iter().filter(|(key, _)| key != "general.architecture").cloned());
    if let Some(architecture) = form.metadata.iter().find(|(key, _)| key == "general.architecture") {
        metadata.insert(0, architecture.clone());
    }
    let side_files =
        luthier_checkpoint::gguf::side_file_metadata(&model.side_files, fit::vocab_size(&layout))?;
    metadata.extend(side_files);
    // Modules that are not known travel along all the same; whoever embeds with them hears of it.
    // llama.cpp knows no linear steps: where there are some, the pooling alone would give it other embeddings than ours.
    let modules = SentenceModules::read(&model.side_files).ok().flatten();
    let modules = modules.filter(|modules| modules.dense.is_empty());
    if let Some(kind) = modules.and_then(|modules| modules.pooling.gguf_type()) {
        let architecture = metadata.first().and_then(|(_, value)| value.as_str()).unwrap_or_default();
        metadata.push((format!("{architecture}.pooling_type"), GgufValue::U32(kind)));
    }
    let view = View::new(model, form, dtype)?;
    metadata.push((FILE_TYPE_KEY.to_string(), GgufValue::U32(file_type_id(&view.infos))));
    Ok((view, metadata))
}

/// Names, sizes and transforms of a model's GGUF file.
fn form(model: &Checkpoint) -> Result<GgufForm> {
    Ok(luthier_arch::gguf::plan_with(&model.config, model.tensors.infos())?)
}

/// The file of a model that is one.
fn opened(input: &Input) -> Result<Option<Gguf>> {
    let place = &input.checkpoint.place;
    let is_gguf = place.is_file() && !luthier_checkpoint::torch::is_torch_name(place);
    if is_gguf { Ok(Some(Gguf::open(place)?)) } else { Ok(None) }
}

/// `general.*` keys that do not follow from the config. Where the card names no parents, they are the models of the hub that
/// the inputs are, or that an input's own record names.
fn general(model: &Checkpoint, inputs: &[&Input], parameters: usize) -> Vec<(String, GgufValue)> {
    let mut parents = Vec::new();
    for input in inputs {
        let place = &input.checkpoint.place;
        // A record that cannot be read only says less.
        let lineage = if place.exists() { Lineage::read(place).unwrap_or(None) } else { None };
        let recorded =
            lineage.iter().flat_map(|lineage| &lineage.parents).map(|parent| parent.place.as_str());
        let own = [input.label.as_str()];
        let is_hub = input.label.starts_with("hf:");
        let places: Vec<&str> = if is_hub { own.to_vec() } else { recorded.collect() };
        for place in places {
            let id = place.strip_prefix("hf:").and_then(|place| place.split('@').next());
            parents.extend(id.filter(|id| !parents.contains(&id.to_string())).map(str::to_string));
        }
    }
    card::general(&inputs[0].label, model.side_file("README.md"), parents, parameters)
}

/// Experts times the weights of a model that has one of them alone, as gguf-py counts (`8x7B`); none without experts.
fn size_label_of_experts(layout: &Layout) -> Option<String> {
    let experts = layout.tensors.iter().filter_map(|spec| spec.role.part.expert()).max()? + 1;
    let with_one =
        layout.tensors.iter().filter(|spec| spec.role.part.expert().is_none_or(|expert| expert == 0));
    let parameters = with_one.map(|spec| spec.shape.iter().product::<usize>()).sum();
    Some(format!("{experts}x{}", size_label(parameters)))
}

/// The type of a tensor in a GGUF file: vectors are F32, as llama.cpp wants them.
fn file_type(info: &TensorInfo, stays_f32: bool, dtype: Option<Dtype>) -> Dtype {
    match info.dtype {
        Dtype::Weights(_) | Dtype::F64 if info.shape.len() < 2 || stays_f32 => Dtype::F32,
        Dtype::F64 => dtype.unwrap_or(Dtype::F32),
        Dtype::Weights(_) => dtype.unwrap_or(info.dtype),
        other => other,
    }
}

/// `general.file_type` (`enum llama_ftype`) of the type that most values have.
pub(crate) fn file_type_id(infos: &[TensorInfo]) -> u32 {
    let values_of = |block_type: BlockType| -> usize {
        let typed = infos.iter().filter(|info| info.dtype == Dtype::Weights(block_type));
        typed.map(|info| info.shape.iter().product::<usize>()).sum()
    };
    match BlockType::ALL.into_iter().max_by_key(|block_type| values_of(*block_type)) {
        Some(BlockType::F16) => 1,
        Some(BlockType::Q4_0) => 2,
        Some(BlockType::Q4_1) => 3,
        Some(BlockType::Q8_0) => 7,
        Some(BlockType::Q5_0) => 8,
        Some(BlockType::Q5_1) => 9,
        Some(BlockType::Q2K) => 10,
        Some(BlockType::Q3K) => 12,
        Some(BlockType::Q4K) => 15,
        Some(BlockType::Q5K) => 17,
        Some(BlockType::Q6K) => 18,
        Some(BlockType::BF16) => 32,
        Some(BlockType::TQ1_0) => 36,
        Some(BlockType::TQ2_0) => 37,
        Some(BlockType::F32) | None => 0,
    }
}

/// Tensors of the inputs that the model is made of and the file does not carry.
fn dropped(model: &[Origin], file: &[Origin]) -> Vec<(usize, String, String)> {
    let carried: HashSet<(usize, &str)> = file.iter().flat_map(Origin::sources).collect();
    let mut known = HashSet::new();
    let lost = model.iter().flat_map(Origin::sources).filter(|source| !carried.contains(source));
    let reason = "stands in the file's metadata, under luthier.beside";
    let lost = lost.filter(|source| known.insert(*source));
    lost.map(|(input, name)| (input, name.to_string(), reason.to_string())).collect()
}
