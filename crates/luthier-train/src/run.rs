//! A run from recipe to finished model: begun, gone on with, or found finished.

use std::path::Path;
use std::sync::Arc;

use luthier_arch::model::Model;
use luthier_checkpoint::json::to_text;
use luthier_checkpoint::lineage::{LINEAGE_NAME, Parent};
use luthier_checkpoint::{LedgerSummary, Lineage, SideFile, TensorSource};
use luthier_ops::Weight;
use luthier_text::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::checkpoint::{self, State};
use crate::corpus;
use crate::identity;
use crate::initial_state;
use crate::inputs;
use crate::metrics::Entry;
use crate::model_folder::{self, Files};
use crate::objectives::{self, ModelShape};
use crate::progress::{Progress, Rate, Start, StepDone};
use crate::recipe::{ModelSource, Recipe};
use crate::run_folder::RunFolder;
use crate::source_texts::SourceTexts;
use crate::teacher::Teacher;
use crate::trainer::{Texts, Trainer};
use crate::windows::TokenStream;
use crate::{Error, Result};

/// What an opener or a reader of texts gives for an error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a model is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be trained: dense f32 weights in variables; random ones come from this seed.
    Train {
        /// The recipe's seed.
        seed: u64,
    },
    /// To stand beside an adapter that is trained: weights as their file has them.
    Adapt,
    /// To teach: never changed.
    Teach,
}

/// A model with what belongs to it.
pub struct Opened {
    /// The model.
    pub model: Box<dyn Model>,
    /// Its tokenizer.
    pub tokenizer: Option<Tokenizer>,
    /// Files that travel with it: tokenizer files, generation_config.json, templates. Not config.json or lineage.json.
    pub side_files: Vec<SideFile>,
    /// What the lineage calls it.
    pub parents: Vec<Parent>,
    /// The tensors that its weights come from, for the ledger; none where the weights are random.
    pub tensors: Option<Arc<dyn TensorSource>>,
}

/// What a run needs of the program around it.
pub struct TrainEnv<'a> {
    /// Opens a MODEL.
    pub open: &'a mut dyn FnMut(&ModelSource, Purpose) -> std::result::Result<Opened, BoxError>,
    /// Reads a text of the recipe; [`crate::read_text_file`] unless the program brings texts of its own.
    pub read_text: &'a dyn Fn(&Path) -> Result<String>,
    /// Is told how it goes.
    pub progress: &'a mut dyn Progress,
    /// The hashes of the files of model, tokenizer and teacher: part of what makes a run this run.
    pub inputs: serde_json::Value,
    /// How many threads compute. The program has set them; the number is part of the run's identity.
    pub threads: usize,
    /// Whether what `out` holds is thrown away first.
    pub force: bool,
}

/// What a finished run came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Steps of the run.
    pub steps: u64,
    /// Tokens of text read.
    pub train_tokens: u64,
    /// Target tokens scored.
    pub target_tokens: u64,
    /// Of the last step.
    pub train_loss_nats: f64,
    /// Before the first step.
    pub initial_validation_loss_nats: Option<f64>,
    /// After the last.
    pub validation_loss_nats: Option<f64>,
    /// Whether the run was found finished and nothing was done.
    #[serde(skip)]
    pub was_finished: bool,
}

/// Trains as the recipe says, going on from the last checkpoint in `out` where there is one. The folder ends as a
/// MODEL, or as an adapter in PEFT's form. Everything in it depends on recipe, texts, models and thread count alone, never on interruptions. An error
/// before the first step leaves no folder behind.
pub fn run(recipe: &Recipe, env: TrainEnv) -> Result<Outcome> {
    let recipe = recipe.clone().resolved()?;
    inputs::refuse_inside(&recipe)?;
    let texts = SourceTexts::read(&recipe, env.read_text)?;
    let (train_texts, validation_texts) = texts.named(&recipe);
    let mut identity = identity::identity(&recipe, &train_texts, &validation_texts, env.threads);
    identity.insert("inputs".to_string(), env.inputs.clone());
    let mut folder = RunFolder::open(&recipe.out, env.force)?;
    let begun = begin(&mut folder, &recipe, &identity, texts, env.open);
    let (mut trainer, mut log, parts) = match begun {
        Ok(Some(begun)) => begun,
        Ok(None) => {
            let state = State::read(&folder.path().join(checkpoint::STATE))?;
            return Ok(Outcome { was_finished: true, ..outcome(&state) });
        }
        Err(error) => {
            folder.abandon();
            return Err(error);
        }
    };
    announce(&recipe, &trainer, &parts, env.progress);
    if trainer.position().step == 0 {
        log.initial_validation_loss_nats = validate(&trainer)?;
        if let Some(loss_nats) = log.initial_validation_loss_nats {
            env.progress.validated(0, loss_nats);
        }
    }
    train(&mut folder, &mut trainer, &mut log, &recipe, &parts, env.progress)
        .map_err(|error| say_what_is_kept(error, &folder))?;
    finish(&folder, &trainer, &log, &recipe, &parts, &identity)
}

/// What a run keeps beside the trainer.
struct Parts {
    side_files: Vec<SideFile>,
    /// Model first, then the teacher, then the adapter that training went on from.
    parents: Vec<Parent>,
    ledger: LedgerSummary,
    text_tokens: usize,
    text_documents: usize,
    validation_tokens: usize,
}

/// What a run has written down so far.
struct Log {
    entries: Vec<Entry>,
    initial_validation_loss_nats: Option<f64>,
}

type Opener<'a> = &'a mut dyn FnMut(&ModelSource, Purpose) -> std::result::Result<Opened, BoxError>;

fn prepare(recipe: &Recipe, texts: &SourceTexts, open: Opener) -> Result<(Trainer, Parts)> {
    let named = |place: &str| {
        let place = place.to_string();
        move |source| Error::Open { place, source }
    };
    let place = match &recipe.model {
        ModelSource::Place(place) => place.clone(),
        ModelSource::Random(random) => random.config.display().to_string(),
    };
    let purpose = match recipe.adapter {
        Some(_) => Purpose::Adapt,
        None => Purpose::Train { seed: recipe.seed },
    };
    let student = open(&recipe.model, purpose).map_err(named(&place))?;
    let Some(tokenizer) = &student.tokenizer else {
        return Err(Error::recipe(
            "model",
            format!("{place} has no tokenizer, and text cannot be read without one"),
        ));
    };
    let tokens = corpus::tokenize(recipe, &texts.train, &texts.validation, tokenizer)?;
    let shape = ModelShape {
        decoder_start_token: student.model.decoder_start_token(),
        is_encoder_decoder: student.model.is_encoder_decoder(),
        vocab_size: student.model.vocab_size(),
    };
    let objective = objectives::of_recipe(recipe, shape, Some(tokenizer))?;
    let mut parents = student.parents;
    let teacher = match (&recipe.teacher, &recipe.distillation) {
        (Some(place), Some(how)) => {
            let opened = open(&ModelSource::Place(place.clone()), Purpose::Teach).map_err(named(place))?;
            corpus::check_same_tokenizer(&texts.train, tokenizer, opened.tokenizer.as_ref())?;
            parents.extend(opened.parents);
            Some(Teacher::new(opened.model, how, student.model.as_ref())?)
        }
        _ => None,
    };
    let [text_tokens, validation_tokens] = [&tokens.train, &tokens.validation].map(TokenStream::n_tokens);
    let text_documents = tokens.train.n_documents();
    let texts = Texts { train: tokens.train, validation: tokens.validation };
    let mut trainer = Trainer::new(recipe, student.model, objective, teacher, texts)?;
    initial_state::load(recipe, &mut trainer)?;
    let ledger = model_folder::ledger(&trainer, &place, student.tensors.as_deref())?;
    let mut side_files = student.side_files;
    if let Some(adapter) = trainer.adapter() {
        // The tokenizer stays with the model.
        side_files.clear();
        parents.extend(adapter.parent()?);
    }
    let parts = Parts { side_files, parents, ledger, text_tokens, text_documents, validation_tokens };
    Ok((trainer, parts))
}

/// Opens everything and puts it where the folder's run is; none where that is finished.
fn begin(
    folder: &mut RunFolder,
    recipe: &Recipe,
    identity: &Map<String, Value>,
    texts: SourceTexts,
    open: Opener,
) -> Result<Option<(Trainer, Log, Parts)>> {
    match folder.identity()? {
        Some(before) if folder.has_progress()? => identity::compare(folder.path(), &before, identity)?,
        _ => folder.set_identity(identity)?,
    }
    if folder.is_finished() {
        return Ok(None);
    }
    let (mut trainer, parts) = prepare(recipe, &texts, open)?;
    drop(texts);
    let log = resume(folder, &mut trainer, recipe)?;
    Ok(Some((trainer, log, parts)))
}

/// Puts the trainer at the folder's last checkpoint and the folder's log with it.
fn resume(folder: &mut RunFolder, trainer: &mut Trainer, recipe: &Recipe) -> Result<Log> {
    let mut log = Log { entries: Vec::new(), initial_validation_loss_nats: None };
    if let Some(&step) = folder.checkpoint_steps()?.last() {
        let state = checkpoint::read(&folder.checkpoint_path(step), trainer)?;
        if state.global_step != step || state.seed != recipe.seed {
            let path = folder.checkpoint_path(step).join(checkpoint::STATE);
            let what = format!(
                "is of step {} and seed {}; the folder was moved, remove it",
                state.global_step, state.seed
            );
            return Err(Error::Format { path, what });
        }
        log = Log {
            entries: state.log_history,
            initial_validation_loss_nats: state.initial_validation_loss_nats,
        };
    }
    folder.rewrite_log(&log.entries)?;
    Ok(log)
}

fn announce(recipe: &Recipe, trainer: &Trainer, parts: &Parts, progress: &mut dyn Progress) {
    let count = |weights: &[Weight]| weights.iter().map(Weight::elem_count).sum();
    progress.started(&Start {
        recipe,
        total_steps: recipe.total_steps(),
        resumed_at_step: trainer.position().step,
        parameters: count(trainer.model().weights()),
        trained_parameters: count(trainer.trained()),
        text_tokens: parts.text_tokens,
        text_documents: parts.text_documents,
        validation_tokens: parts.validation_tokens,
        memory: trainer.memory(),
    });
}

/// Validation loss; one that is no number ends the run as a training loss would.
fn validate(trainer: &Trainer) -> Result<Option<f64>> {
    let Some(validation) = trainer.validate()? else { return Ok(None) };
    match validation.loss_nats.is_finite() {
        true => Ok(Some(validation.loss_nats)),
        false => {
            let step = trainer.position().step;
            Err(Error::Diverged {
                step,
                what: "validation loss",
                value: validation.loss_nats,
                kept: String::new(),
            })
        }
    }
}

fn train(
    folder: &mut RunFolder,
    trainer: &mut Trainer,
    log: &mut Log,
    recipe: &Recipe,
    parts: &Parts,
    progress: &mut dyn Progress,
) -> Result<()> {
    let total_steps = recipe.total_steps();
    let is_due = |step: u64, every: Option<u64>| every.is_some_and(|every| step.is_multiple_of(every));
    let mut rate = Rate::start();
    while trainer.position().step < total_steps {
        let tokens_before = trainer.position().train_tokens;
        let (report, lr) = trainer.step()?;
        let position = trainer.position();
        let validates = position.step == total_steps || is_due(position.step, recipe.validate_every_steps);
        let validation_loss_nats = if validates { validate(trainer)? } else { None };
        let entry = Entry {
            step: position.step,
            epoch: trainer.epochs(),
            loss: report.loss_nats,
            balance_loss: report.balance_loss,
            learning_rate: lr,
            grad_norm: report.grad_norm,
            train_tokens: position.train_tokens,
            target_tokens: position.target_tokens,
            validation_loss_nats,
        };
        folder.append_log(&entry)?;
        let tokens_per_s = rate.step(position.train_tokens - tokens_before);
        let tokens_left = (total_steps - position.step) * recipe.batch_size * recipe.sequence_length;
        progress.step_done(&StepDone {
            step: position.step,
            total_steps,
            loss_nats: report.loss_nats,
            lr,
            grad_norm: report.grad_norm,
            tokens_per_s,
            eta_s: tokens_left as f64 / tokens_per_s,
        });
        validation_loss_nats.into_iter().for_each(|loss_nats| progress.validated(position.step, loss_nats));
        log.entries.push(entry);
        if position.step == total_steps || is_due(position.step, recipe.checkpoint_every_steps) {
            trainer.check_finite()?;
        }
        if is_due(position.step, recipe.checkpoint_every_steps) {
            let state = state(trainer, log, recipe);
            let place = folder.place_checkpoint(position.step, |path| {
                checkpoint::write(path, trainer, &state, &parts.side_files)
            })?;
            folder.keep_newest(recipe.keep_checkpoints)?;
            progress.saved(position.step, &place);
        }
    }
    Ok(())
}

fn state(trainer: &Trainer, log: &Log, recipe: &Recipe) -> State {
    State::of(trainer, recipe.seed, recipe.total_steps(), log.initial_validation_loss_nats, &log.entries)
}

fn say_what_is_kept(error: Error, folder: &RunFolder) -> Error {
    let Error::Diverged { step, what, value, .. } = error else { return error };
    let last = folder.checkpoint_steps().ok().and_then(|steps| steps.last().copied());
    let kept = match last {
        Some(last) => format!("the last good weights are in {}", folder.checkpoint_path(last).display()),
        None => "no checkpoint had been written yet".to_string(),
    };
    Error::Diverged { step, what, value, kept }
}

fn outcome(state: &State) -> Outcome {
    let last = state.log_history.last();
    Outcome {
        steps: state.global_step,
        train_tokens: state.position.train_tokens,
        target_tokens: state.position.target_tokens,
        train_loss_nats: last.map_or(f64::NAN, |entry| entry.loss),
        initial_validation_loss_nats: state.initial_validation_loss_nats,
        validation_loss_nats: last.and_then(|entry| entry.validation_loss_nats),
        was_finished: false,
    }
}

/// Makes the folder a MODEL or an adapter, its lineage last.
fn finish(
    folder: &RunFolder,
    trainer: &Trainer,
    log: &Log,
    recipe: &Recipe,
    parts: &Parts,
    identity: &Map<String, Value>,
) -> Result<Outcome> {
    let state = state(trainer, log, recipe);
    let outcome = outcome(&state);
    for file in &parts.side_files {
        folder.place_file(&file.name, &file.bytes)?;
    }
    let files = Files::of(trainer, recipe.precision);
    folder.place_file(files.config_name, to_text(&files.config).as_bytes())?;
    folder.place_with(files.weights_name, |path| {
        model_folder::write_weights(path, trainer, recipe.precision)
    })?;
    folder.place_file(checkpoint::STATE, to_text(&state).as_bytes())?;
    let recipe_value = Value::Object(identity.clone());
    let (parents, ledger) = (parts.parents.clone(), parts.ledger.clone());
    let mut lineage = Lineage::new("pretrain", recipe_value, Some(recipe.seed), parents, ledger);
    let Value::Object(measurements) = json!(outcome) else { unreachable!("an outcome is a struct") };
    lineage.measurements = measurements;
    folder.place_file(LINEAGE_NAME, lineage.to_text().as_bytes())?;
    Ok(outcome)
}
