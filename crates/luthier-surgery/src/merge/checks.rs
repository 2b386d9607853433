//! What is refused before a weight is read, and what the headers say of all models.

use luthier_checkpoint::Dtype;
use luthier_checkpoint::layout::Layout;

use super::method::{METHODS, Method, nearest};
use super::recipe::Recipe;
use crate::{Error, Input, Result, fit};

/// Refuses parameters that no method has; notes those that this one does not use.
pub(super) fn check_parameters(recipe: &Recipe, method: &Method) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for (set, of_one_model) in recipe.all_parameters() {
        for name in set.keys() {
            let own = method.parameters.iter().find(|parameter| parameter.name == name);
            let known =
                || METHODS.iter().flat_map(|method| method.parameters).map(|parameter| parameter.name);
            let note = match own {
                Some(parameter) if of_one_model && !parameter.per_input => {
                    format!("parameter {name} belongs to the whole merge; under one model it is not used")
                }
                Some(_) => continue,
                None if known().any(|known| known == name) => {
                    format!("parameter {name}: merge_method {} does not use it", method.name)
                }
                None => {
                    let meant = nearest(name, known());
                    return Err(Error::Use(format!("unknown parameter {name}: did you mean {meant}?")));
                }
            };
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    Ok(notes)
}

/// The result's type where the recipe says one.
pub(super) fn wanted_type(recipe: &Recipe) -> Result<Option<Dtype>> {
    let mut found = None;
    for (key, name) in [("dtype", &recipe.dtype), ("out_dtype", &recipe.out_dtype)] {
        let Some(name) = name else { continue };
        if key == "dtype" && name.trim_start_matches("torch.") == "float64" {
            return Err(Error::Use(
                "dtype: float64 asks for arithmetic in 64 bits, and merges are computed in 32; wanted dtype: float32, with \
                 out_dtype: float64 for a result that is stored in 64 bits"
                    .to_string(),
            ));
        }
        found = Some(match name.trim_start_matches("torch.") {
            "float64" => Dtype::F64,
            "float32" => Dtype::F32,
            "bfloat16" => Dtype::BF16,
            "float16" => Dtype::F16,
            other => {
                return Err(Error::Use(format!(
                    "{key}: wanted float64, float32, bfloat16 or float16, came {other}"
                )));
            }
        });
    }
    Ok(found)
}

/// The checked layouts of all models; none where one of them has no known architecture.
pub(super) fn layouts(inputs: &[Input]) -> Result<Option<Vec<Layout>>> {
    // Old configs do not say what they are.
    if inputs.iter().any(|input| !input.checkpoint.config.contains_key("model_type")) {
        return Ok(None);
    }
    let mut layouts = Vec::new();
    for input in inputs {
        match luthier_arch::check_headers(&input.checkpoint) {
            Ok(layout) => layouts.push(layout),
            Err(luthier_arch::Error::UnknownArchitecture { .. }) => return Ok(None),
            Err(problem) => return Err(problem.into()),
        }
    }
    Ok(Some(layouts))
}

pub(super) fn same_family(inputs: &[Input]) -> Result<()> {
    let family = |input: &Input| input.checkpoint.config.get("model_type").cloned().unwrap_or_default();
    match inputs.iter().find(|input| family(input) != family(&inputs[0])) {
        Some(other) => Err(Error::Use(format!(
            "model_type is {} in {} and {} in {}; only models of one architecture are merged",
            family(&inputs[0]),
            inputs[0].label,
            family(other),
            other.label
        ))),
        None => Ok(()),
    }
}

/// Refuses a model with a head of its own where the result's head is its embedding.
pub(super) fn same_ties(inputs: &[Input], layouts: &[Layout], target: &Layout) -> Result<()> {
    for (input, layout) in inputs.iter().zip(layouts) {
        let lost = target.ties.iter().find(|tie| layout.tensors.iter().any(|spec| spec.name == tie.name));
        if let Some(tie) = lost {
            let what = format!(
                "is a weight of its own in {}, but tied to {} in {}; untie the latter first, or take the former as the base",
                input.label, tie.target, inputs[0].label
            );
            return Err(luthier_checkpoint::Error::tensor(&tie.name, what).into());
        }
    }
    Ok(())
}

/// Rows of a model that brings nothing but its tokenizer.
pub(super) fn tokenizer_rows(input: &Input) -> Result<usize> {
    let said = input.checkpoint.config.get("vocab_size").and_then(serde_json::Value::as_u64);
    let of_tokenizer =
        || Ok(fit::tokenizer(&input.checkpoint)?.map_or(0, |tokenizer| tokenizer.vocab_size()));
    said.map_or_else(of_tokenizer, |rows| Ok(rows as usize))
}

pub(super) fn exactly_one(recipe: &Recipe) -> Result<()> {
    let given = [recipe.models.is_some(), recipe.slices.is_some(), recipe.modules.is_some()];
    match given.into_iter().filter(|given| *given).count() {
        1 => Ok(()),
        count => Err(Error::Use(format!("wanted exactly one of models, slices and modules, came {count}"))),
    }
}
