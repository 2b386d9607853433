//! What is found out about a whole tensor, piece by piece, before its first part is merged.

use std::sync::{Arc, Mutex, PoisonError};

use luthier_checkpoint::Result;
use luthier_kernels::pool;

use super::cuts::{self, Visit};
use super::merged::{Cuts, Merged, PART_LEN, PIECE_LEN, Problem, Scales, Stored, part};
use super::method::Reach;
use super::pairing::Piece;
use super::task_vectors::{kept_count, rescaled};

/// Sums of magnitudes: of all differences of an input, and of those that are kept.
type Sums = (f64, f64);

impl Merged {
    /// Where the largest differences of each input end; nothing for methods that do not ask. The last tensor's are kept.
    pub(super) fn cuts(&self, piece: &Piece) -> Result<Cuts> {
        let Reach::Largest(shares) = self.method.reach else { return Ok(Arc::default()) };
        if piece.kept {
            return Ok(Arc::default());
        }
        let Some(shares) = shares(&piece.values) else { return Ok(Arc::default()) };
        let mut known = self.known_cuts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, cuts)) = &*known
            && *name == piece.info.name
        {
            return Ok(Arc::clone(cuts));
        }
        let n_values: usize = piece.info.shape.iter().product();
        let is_cut = |input: usize| Some(input) != piece.base && shares[input] > 0.0 && shares[input] < 1.0;
        let counts: Vec<Option<usize>> = (0..piece.inputs.len())
            .map(|input| is_cut(input).then(|| kept_count(shares[input], n_values)))
            .collect();
        let walk = |step: usize, visit: &Visit| -> Result<()> {
            for start in (0..n_values).step_by(PART_LEN) {
                let range = start..n_values.min(start + PART_LEN);
                let stored = self.stored(piece, range.clone())?;
                let base = piece.base.unwrap_or(0);
                visit_pieces(&stored, range.len(), start / PIECE_LEN, step, &|task, at, tensors| {
                    visit(task, at, tensors, &tensors[base]);
                })?;
            }
            Ok(())
        };
        let cuts = Arc::new(cuts::find(n_values, n_values.div_ceil(PIECE_LEN), &counts, &walk)?);
        *known = Some((piece.info.name.clone(), Arc::clone(&cuts)));
        Ok(cuts)
    }

    /// What the differences of each input that are kept at random are multiplied with; nothing for methods that do not ask.
    /// Sums are taken piece by piece and added up in order, whatever the number of threads. The last tensor's are kept.
    pub(super) fn scales(&self, piece: &Piece) -> Result<Scales> {
        let Reach::Drawn(shares) = self.method.reach else { return Ok(Arc::default()) };
        let Some(shares) = shares(&piece.values).filter(|_| !piece.kept) else { return Ok(Arc::default()) };
        let mut known = self.known_scales.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, scales)) = &*known
            && *name == piece.info.name
        {
            return Ok(Arc::clone(scales));
        }
        let n_values: usize = piece.info.shape.iter().product();
        let base = piece.base.unwrap_or(0);
        let is_drawn = |input: usize| input != base && shares[input] < 1.0;
        let none: Vec<Sums> = vec![(0.0, 0.0); piece.inputs.len()];
        let sums = Mutex::new(vec![none.clone(); n_values.div_ceil(PIECE_LEN)]);
        for start in (0..n_values).step_by(PART_LEN) {
            let range = start..n_values.min(start + PART_LEN);
            let stored = self.stored(piece, range.clone())?;
            visit_pieces(&stored, range.len(), start / PIECE_LEN, 1, &|_, number, tensors| {
                let mut own = none.clone();
                for input in (0..tensors.len()).filter(|input| is_drawn(*input)) {
                    let deltas = tensors[input].iter().zip(&tensors[base]).map(|(value, base)| value - base);
                    for (at, delta) in deltas.enumerate() {
                        let size = f64::from(delta.abs());
                        own[input].0 += size;
                        let at = number * PIECE_LEN + at;
                        own[input].1 +=
                            if self.keeps(&piece.info.name, input, at, shares[input]) { size } else { 0.0 };
                    }
                }
                sums.lock().unwrap_or_else(PoisonError::into_inner)[number] = own;
            })?;
        }
        let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
        let scale = |input: usize| {
            let add = |sum: Sums, own: &Vec<Sums>| (sum.0 + own[input].0, sum.1 + own[input].1);
            let (before, after) = sums.iter().fold((0.0, 0.0), add);
            is_drawn(input).then(|| rescaled(before, after))
        };
        let scales: Scales = Arc::new((0..piece.inputs.len()).map(scale).collect());
        *known = Some((piece.info.name.clone(), Arc::clone(&scales)));
        Ok(scales)
    }
}

/// Gets a task's number, a piece's number, and all inputs' values of it.
type Show<'s> = dyn Fn(usize, usize, &[Vec<f32>]) + Sync + 's;

/// Shows the values of each input to as many tasks as there are threads, in pieces, of which those whose number is a
/// multiple of `step`; each task gets a stretch of its own and its number.
fn visit_pieces(stored: &[Stored], len: usize, first: usize, step: usize, visit: &Show) -> Result<()> {
    let n_pieces = len.div_ceil(PIECE_LEN);
    let stretch = n_pieces.div_ceil(pool::threads()).max(1);
    let problem = Problem::default();
    pool::run(n_pieces.div_ceil(stretch), &|task| {
        let own = task * stretch..n_pieces.min((task + 1) * stretch);
        for at in own.filter(|at| (first + at).is_multiple_of(step)) {
            let start = at * PIECE_LEN;
            let piece_len = PIECE_LEN.min(len - start);
            let tensors = stored.iter().map(|stored| part(stored, start, piece_len));
            match tensors.collect::<Result<Vec<_>>>() {
                Ok(tensors) => visit(task, first + at, &tensors),
                Err(error) => return problem.note(error),
            }
        }
    });
    problem.into_result()
}
