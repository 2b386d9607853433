//! What the trainer needs of the program: opening models, and telling where they came from.

use anyhow::{Context, bail};
use candle_core::Device;
use luthier_arch::model::check_predicts_next;
use luthier_arch::{LoadOptions, Model};
use luthier_checkpoint::byte_count::Bytes;
use luthier_checkpoint::lineage::{Parent, sha256_of_file};
use luthier_ops::profile::Profile;
use luthier_train::bench::WARM_UP_STEPS;
use luthier_train::recipe::{AdapterRecipe, ModelSource, RandomModel};
use luthier_train::run::BoxError;
use luthier_train::{Opened, Outcome, Purpose, Recipe, TrainEnv};
use serde_json::{Value, json};

use crate::progress::TrainingDisplay;
use crate::session::Session;
use crate::{places, texts};

/// Runs a recipe; `label` stands before the lines that a person reads meanwhile. `force` throws away what `out` holds.
pub fn train(recipe: &Recipe, session: &Session, label: &str, force: bool) -> anyhow::Result<Outcome> {
    luthier_kernels::process::keep_freed_memory();
    if let Some(threads) = recipe.threads {
        luthier_kernels::pool::set_threads(usize::try_from(threads)?);
    }
    let mut display = TrainingDisplay::new(session, label);
    let env = TrainEnv {
        open: &mut |source, purpose| {
            open(source, purpose).map_err(|error| BoxError::from(format!("{error:#}")))
        },
        read_text: &texts::read,
        progress: &mut display,
        threads: luthier_kernels::pool::threads(),
        inputs: inputs(recipe)?,
        force,
    };
    let outcome = luthier_train::run(recipe, env);
    luthier_kernels::pool::set_threads(session.thread_count());
    Ok(outcome?)
}

/// The hashes of all model files that a run depends on.
fn inputs(recipe: &Recipe) -> anyhow::Result<Value> {
    let files_of = |parent: Parent| serde_json::to_value(parent.files);
    let hashes = |model: &str| -> anyhow::Result<Value> { Ok(files_of(places::input(model)?.parent()?)?) };
    let model = match &recipe.model {
        ModelSource::Place(place) => hashes(place)?,
        ModelSource::Random(random) => {
            Value::Array(random_parents(random)?.into_iter().map(files_of).collect::<Result<Vec<_>, _>>()?)
        }
    };
    let teacher = recipe.teacher.as_deref().map(hashes).transpose()?;
    let mut inputs = json!({ "model": model, "teacher": teacher });
    if let Some(place) = recipe.adapter.as_ref().and_then(|adapter| adapter.initial.as_deref()) {
        inputs["adapter"] = files_of(Parent::of_place("", place)?)?;
    }
    if let Some(file) = luthier_train::initial_state::file(recipe)? {
        inputs["optimizer_state"] = json!(sha256_of_file(&file)?.1);
    }
    Ok(inputs)
}

/// The config and the tokenizer that a run with random weights starts from.
fn random_parents(random: &RandomModel) -> anyhow::Result<Vec<Parent>> {
    let config_name = random.config.display().to_string();
    let config = std::fs::read(&random.config).with_context(|| config_name.clone())?;
    let side_files = places::side_files(&random.tokenizer)?;
    let tokenizer_files: Vec<(&str, &[u8])> =
        side_files.iter().map(|file| (file.name.as_str(), file.bytes.as_slice())).collect();
    Ok(vec![
        Parent::of_bytes(&config_name, &[("config.json", config.as_slice())]),
        Parent::of_bytes(&random.tokenizer, &tokenizer_files),
    ])
}

fn open(source: &ModelSource, purpose: Purpose) -> anyhow::Result<Opened> {
    match (source, purpose) {
        (ModelSource::Place(place), purpose) => {
            let input = places::input(place)?;
            let parent = input.parent()?;
            let checkpoint = input.checkpoint;
            let options =
                LoadOptions { trainable: matches!(purpose, Purpose::Train { .. }), device: Device::Cpu };
            let model = luthier_arch::load(&checkpoint, &options)?;
            check_predicts_next(model.as_ref(), "training on text")?;
            let tokenizer = places::tokenizer_if_any(&checkpoint)?;
            if let Some(tokenizer) = &tokenizer {
                tokenizer.check_fits(model.vocab_size())?;
            }
            let tensors = Some(checkpoint.tensors);
            Ok(Opened { model, tokenizer, side_files: checkpoint.side_files, parents: vec![parent], tensors })
        }
        (ModelSource::Random(random), Purpose::Train { seed }) => {
            let config = luthier_checkpoint::folder::read_config(&random.config)?;
            let side_files = places::side_files(&random.tokenizer)?;
            let tokenizer = places::tokenizer_of(&side_files, &random.tokenizer)?;
            let model = luthier_arch::init(&config, seed, true, &Device::Cpu)
                .with_context(|| random.config.display().to_string())?;
            check_predicts_next(model.as_ref(), "training on text")?;
            tokenizer.check_fits(model.vocab_size())?;
            let parents = random_parents(random)?;
            Ok(Opened { model, tokenizer: Some(tokenizer), side_files, parents, tensors: None })
        }
        (ModelSource::Random(_), Purpose::Adapt) => {
            bail!("an adapter needs weights to stand beside; name a MODEL")
        }
        (ModelSource::Random(_), Purpose::Teach) => bail!("a teacher needs weights; name a MODEL"),
    }
}

/// Times `steps` training steps of MODEL, or of an adapter beside it, on one fixed batch, the first two for warming up.
pub fn bench(
    model: &str,
    adapter: Option<&AdapterRecipe>,
    memory: Option<Bytes>,
    batch: usize,
    seq: usize,
    steps: usize,
) -> anyhow::Result<luthier_train::bench::StepTimes> {
    let timed = steps.saturating_sub(WARM_UP_STEPS);
    if timed == 0 {
        bail!("steps: wanted more than the {WARM_UP_STEPS} that warm up, got {steps}");
    }
    let mut model = trainable(model, adapter.is_none())?;
    Ok(luthier_train::bench::bench_step(model.as_mut(), adapter, memory, batch, seq, timed)?)
}

/// Where the time of `steps` such steps goes, after two for warming up.
pub fn profile(model: &str, batch: usize, seq: usize, steps: usize) -> anyhow::Result<Profile> {
    let mut model = trainable(model, true)?;
    Ok(luthier_train::bench::profile_steps(model.as_mut(), batch, seq, steps)?)
}

/// MODEL with every weight trainable, or, to stand beside an adapter, as its file has it.
fn trainable(model: &str, whole: bool) -> anyhow::Result<Box<dyn Model>> {
    luthier_kernels::process::keep_freed_memory();
    let checkpoint = places::open(model)?;
    let options = LoadOptions { trainable: whole, device: Device::Cpu };
    Ok(luthier_arch::load(&checkpoint, &options)?)
}
