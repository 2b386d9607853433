//! A folder of bitsandbytes' with other values in what the adapters changed: its tensors, types and states are kept.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use luthier_checkpoint::bitsandbytes::{CONFIG_KEY, QuantState, STATE_ENDING, restored};
use luthier_checkpoint::{Checkpoint, Dtype, Error, Result as FileResult, TensorInfo, TensorSource, folder};
use luthier_kernels::bitsandbytes::Levels;
use luthier_kernels::bytes::SharedBytes;
use serde_json::{Map, Value};

use super::Sources;
use super::rounded::round;
use crate::Result;
use crate::quantize::parts::{self, Weight};
use crate::view::find;
use crate::writing::Origin;

/// The folder's tensors as they are stored.
pub(super) struct Requantized {
    /// config.json as it stands.
    pub(super) config: Map<String, Value>,
    /// The base's own tensors.
    pub(super) stored: Arc<dyn TensorSource>,
    /// The model with the adapters, what changed in f32.
    exact: Arc<dyn TensorSource>,
    changed: HashSet<String>,
    /// Rounded weights that changed, by number.
    weights: Vec<Weight>,
    /// By stored name: the number of the weight that it is a part of.
    numbers: HashMap<String, usize>,
    infos: Vec<TensorInfo>,
    latest: Mutex<Option<(usize, Vec<(TensorInfo, SharedBytes)>)>>,
}

impl Requantized {
    /// Whether a folder holds weights that bitsandbytes has rounded.
    pub(super) fn is_such(place: &Path) -> Result<bool> {
        let path = place.join("config.json");
        if !path.is_file() {
            return Ok(false);
        }
        let config = folder::read_config(&path)?;
        let method = config.get(CONFIG_KEY).and_then(|quantisation| quantisation.get("quant_method"));
        Ok(method.and_then(Value::as_str) == Some("bitsandbytes"))
    }

    pub(super) fn new(
        place: &Path,
        exact: Arc<dyn TensorSource>,
        changed: &HashSet<String>,
    ) -> Result<Requantized> {
        let (config, stored) = folder::open_stored(place)?;
        let (mut weights, mut numbers) = (Vec::new(), HashMap::new());
        for info in stored.infos() {
            let Some((name, weight)) = weight_of(stored.as_ref(), info)? else { continue };
            if !changed.contains(&name) {
                continue;
            }
            for part in parts::infos(&weight)? {
                numbers.insert(part.name, weights.len());
            }
            weights.push(weight);
        }
        for weight in &mut weights {
            let bytes = exact.read(&weight.info.name)?;
            weight.fix_offset((find(exact.infos(), &weight.info.name)?.dtype, &bytes))?;
        }
        let mut new: HashMap<String, TensorInfo> = HashMap::new();
        for weight in &weights {
            new.extend(parts::infos(weight)?.into_iter().map(|info| (info.name.clone(), info)));
        }
        let infos = stored
            .infos()
            .iter()
            .map(|info| new.remove(&info.name).unwrap_or_else(|| info.clone()))
            .collect();
        if let Some(name) = new.keys().min() {
            return Err(Error::tensor(name, "is missing; weights of bitsandbytes need it").into());
        }
        let changed = changed.clone();
        Ok(Requantized { config, stored, exact, changed, weights, numbers, infos, latest: Mutex::default() })
    }

    /// The model as whoever opens the folder sees it, beside what `like` has.
    pub(super) fn restored(self: &Arc<Self>, like: &Checkpoint) -> Result<Checkpoint> {
        let (config, tensors) = restored(self.config.clone(), Arc::clone(self) as Arc<dyn TensorSource>)?;
        Ok(Checkpoint { config, tensors, ..like.clone() })
    }

    /// Where the tensors come from, `sources` being the answer for names of the model.
    pub(super) fn origins(&self, sources: Sources) -> Vec<Origin> {
        let origin = |info: &TensorInfo| {
            let name = &info.name;
            let Some(number) = self.numbers.get(name) else {
                return match self.changed.contains(name) {
                    false => Origin::From { input: 0, name: name.clone() },
                    true => Origin::Merged { sources: sources(name), how: "with an adapter".to_string() },
                };
            };
            let weight = &self.weights[*number];
            if *name != weight.info.name {
                let of_base = vec![(0, name.clone())];
                return Origin::Merged {
                    sources: of_base,
                    how: format!("part of a {} weight with an adapter", weight.name()),
                };
            }
            Origin::Merged { sources: sources(name), how: format!("with an adapter, as {}", weight.name()) }
        };
        self.infos.iter().map(origin).collect()
    }
}

/// The weight whose first part or scales a stored tensor is, with the scheme of its state.
fn weight_of(stored: &dyn TensorSource, info: &TensorInfo) -> Result<Option<(String, Weight)>> {
    if let Some((name, _)) = info.name.split_once(STATE_ENDING) {
        let state: QuantState = serde_json::from_slice(&stored.read(&info.name)?).map_err(|problem| {
            Error::tensor(&info.name, format!("wanted the JSON of a quantisation state: {problem}"))
        })?;
        let levels = match state.quant_type.as_str() {
            "nf4" => Levels::Nf4,
            "fp4" => Levels::Fp4,
            other => {
                return Err(
                    Error::tensor(&info.name, format!("quant_type is {other}; wanted nf4 or fp4")).into()
                );
            }
        };
        return Ok(Some((name.to_string(), Weight::four_bits(name, levels, &state)?)));
    }
    if let Some(module) = info.name.strip_suffix(".SCB") {
        let name = format!("{module}.weight");
        let shape = find(stored.infos(), &name)?.shape.clone();
        return Ok(Some((name.clone(), Weight::int8(&name, shape))));
    }
    Ok(None)
}

impl TensorSource for Requantized {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> FileResult<SharedBytes> {
        let Some(number) = self.numbers.get(name) else {
            if !self.changed.contains(name) {
                return self.stored.read(name);
            }
            let dtype: Dtype = find(self.exact.infos(), name)?.dtype;
            let bytes = self.exact.read(name)?;
            return round(find(&self.infos, name)?, (dtype, &bytes)).map(SharedBytes::from_vec);
        };
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.as_ref().is_none_or(|(held, _)| held != number) {
            *latest = None;
            let weight = &self.weights[*number];
            let dtype = find(self.exact.infos(), &weight.info.name)?.dtype;
            let bytes = self.exact.read(&weight.info.name)?;
            let made = weight.round((dtype, &bytes)).map_err(|problem| match problem {
                crate::Error::Checkpoint(problem) => problem,
                other => Error::tensor(name, other.to_string()),
            })?;
            *latest = Some((*number, made));
        }
        let (_, made) = latest.as_ref().expect("was just filled");
        let part = made.iter().find(|(info, _)| info.name == name);
        part.map(|(_, bytes)| bytes.clone()).ok_or_else(|| Error::tensor(name, "is no part of its weight"))
    }
}
