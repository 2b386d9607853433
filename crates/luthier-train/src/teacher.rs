//! A teacher: a frozen model whose distribution at the target positions the student learns (arXiv:1503.02531).
//!
//! A decoder-only teacher of an encoder-decoder student reads the text itself; its prediction of each target token stands
//! at the token before it. Targets that are no tokens of the text (sentinels, end tokens) it does not teach.

use candle_core::Tensor;
use luthier_arch::model::Model;
use luthier_ops::cross_entropy::Teaching;

use crate::batch::{Batch, TeacherView};
use crate::recipe::DistillationRecipe;
use crate::{Error, Result};

// n scored positions, v vocabulary

/// The teacher of a run.
pub struct Teacher {
    model: Box<dyn Model>,
    share: f64,
    temperature: f64,
}

impl Teacher {
    /// Refuses a teacher that cannot score the student's targets; freezes its weights.
    pub fn new(model: Box<dyn Model>, how: &DistillationRecipe, student: &dyn Model) -> Result<Teacher> {
        if model.vocab_size() != student.vocab_size() {
            let what = format!(
                "has a vocabulary of {}, the student of {}; they must be one tokenizer's",
                model.vocab_size(),
                student.vocab_size()
            );
            return Err(Error::recipe("teacher", what));
        }
        if model.is_encoder_decoder() && !student.is_encoder_decoder() {
            let what = "is an encoder-decoder, the student has no encoder; name a decoder-only teacher";
            return Err(Error::recipe("teacher", what));
        }
        for weight in model.weights() {
            weight.set_trainable(false);
        }
        Ok(Teacher { model, share: how.teacher_share, temperature: how.temperature })
    }

    /// The teacher's logits at the scored positions of a batch, [n, v], and how they count.
    pub fn targets(&self, batch: &Batch, scored: &[u32]) -> Result<Teaching> {
        let share = self.share as f32;
        let view = batch.teacher.as_ref().filter(|_| !self.model.is_encoder_decoder());
        let logits = luthier_ops::without_tape(|| self.score(batch, view, scored))?;
        let shares = match view {
            // Where the view predicts nothing, its logits are those of some other position and count nothing.
            Some(view) => view.positions.iter().map(|at| if at.is_some() { share } else { 0.0 }).collect(),
            None => vec![share; scored.len()],
        };
        Ok(Teaching { logits, shares, temperature: self.temperature })
    }

    fn score(&self, batch: &Batch, view: Option<&TeacherView>, scored: &[u32]) -> Result<Tensor> {
        let (states, positions) = match view {
            Some(view) => {
                let positions = view.positions.iter().map(|at| at.unwrap_or(0)).collect();
                (self.model.hidden(&view.tokens, None, None)?, positions)
            }
            None => {
                let encoded = batch.encoder.as_ref().map(|tokens| self.model.encode(tokens)).transpose()?;
                (self.model.hidden(&batch.decoder, encoded.as_ref(), None)?, scored.to_vec())
            }
        };
        Ok(self.model.logits(&select_rows(&states, &positions)?)?)
    }
}

/// states: [b, t, m] -> the rows of [b * t, m] that are wanted, [n, m]; the whole where all are.
pub fn select_rows(states: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let (b, t, m) = states.dims3()?;
    let flat = states.reshape((b * t, m))?;
    if rows.len() == b * t {
        return Ok(flat);
    }
    Ok(flat.index_select(&Tensor::from_slice(rows, rows.len(), flat.device())?, 0)?)
}
