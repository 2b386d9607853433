//! What is found out about a whole tensor, piece by piece, before its first values are merged.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use luthier_checkpoint::{Error, Result};
use luthier_kernels::pool;

use super::cuts::{self, TensorCut, Visit};
use super::merged::{Merged, Problem, part};
use super::method::{Cut, Group};
use super::pairing::Piece;

/// What a method has found out.
#[derive(Default)]
pub(crate) struct Known {
    /// Where the largest of something end, in the method's order.
    pub(crate) cuts: Vec<Option<TensorCut>>,
    /// Other numbers, in the method's order.
    pub(crate) numbers: Vec<f64>,
}

impl Known {
    /// The cuts for a piece.
    fn at(&self, piece: usize) -> Vec<Option<Cut>> {
        self.cuts.iter().map(|cut| cut.as_ref().map(|cut| cut.at(piece))).collect()
    }
}

/// Values of a tensor that are merged by themselves: all of them, those of its rows that stand for tokens, or the rest.
pub(crate) struct Section<'s> {
    merged: &'s Merged,
    piece: &'s Piece,
    range: Range<usize>,
}

/// What a piece adds to some sums.
type Add<'a> = dyn Fn(&Group) -> std::result::Result<Vec<f64>, String> + Sync + 'a;

impl Section<'_> {
    /// Parameters, as [`Group::values`].
    pub(crate) fn values(&self) -> &[Vec<f64>] {
        &self.piece.values
    }

    /// As [`Group::base`].
    pub(crate) fn base(&self) -> Option<usize> {
        self.piece.base
    }

    /// Inputs, the base among them.
    pub(crate) fn n_inputs(&self) -> usize {
        self.piece.inputs.len()
    }

    /// Inputs that are not the base, by number.
    pub(crate) fn others(&self) -> Vec<usize> {
        (0..self.n_inputs()).filter(|&input| Some(input) != self.piece.base).collect()
    }

    /// Number of values.
    pub(crate) fn n_values(&self) -> usize {
        self.range.len()
    }

    /// What of some values lies in it.
    pub(super) fn within(&self, values: &Range<usize>) -> Range<usize> {
        self.range.start.max(values.start)..self.range.end.min(values.end)
    }

    /// The refusal of what the method cannot merge.
    pub(crate) fn wrong(&self, what: &str) -> Error {
        Error::tensor(&self.piece.info.name, format!("{}: {what}", self.merged.method.name))
    }

    /// Adds up `n` numbers over all pieces, in their order whatever the number of threads.
    pub(crate) fn sums(&self, known: &Known, n: usize, add: &Add) -> Result<Vec<f64>> {
        let mut sums = vec![0f64; n];
        for part in self.merged.parts(self.piece, &self.range) {
            let first = self.merged.piece_at(self.piece, part.start);
            let n_pieces = self.merged.piece_at(self.piece, part.end.max(1) - 1) + 1 - first;
            let added = Mutex::new(vec![Vec::new(); n_pieces]);
            self.walk(known, part, 1, &|_, piece, group| {
                let own = add(group).map_err(|what| self.wrong(&what))?;
                added.lock().unwrap_or_else(PoisonError::into_inner)[piece - first] = own;
                Ok(())
            })?;
            for own in added.into_inner().unwrap_or_else(PoisonError::into_inner) {
                sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
            }
        }
        Ok(sums)
    }

    /// Where the largest of some magnitudes end, of each kind that has a count (1 to all); `of` gives those of a kind.
    pub(crate) fn cuts(
        &self,
        counts: &[Option<usize>],
        of: &(dyn Fn(&Group, usize) -> Vec<f32> + Sync),
    ) -> Result<Vec<Option<TensorCut>>> {
        let known = Known::default();
        let first = self.merged.piece_at(self.piece, self.range.start);
        let n_pieces = match self.range.is_empty() {
            true => 0,
            false => self.merged.piece_at(self.piece, self.range.end - 1) + 1 - first,
        };
        let walk = |step: usize, visit: &Visit| -> Result<()> {
            for part in self.merged.parts(self.piece, &self.range) {
                self.walk(&known, part, step, &|task, piece, group| {
                    visit(task, piece - first, &|kind| of(group, kind));
                    Ok(())
                })?;
            }
            Ok(())
        };
        cuts::find(self.n_values(), n_pieces, counts, &walk)
    }

    /// Shows the pieces of a part to as many tasks as there are threads, those whose number is a multiple of `step`; each task
    /// gets a stretch of its own and its number.
    fn walk(
        &self,
        known: &Known,
        range: Range<usize>,
        step: usize,
        visit: &(dyn Fn(usize, usize, &Group) -> Result<()> + Sync),
    ) -> Result<()> {
        let stored = self.merged.stored(self.piece, range.clone())?;
        let first = self.merged.piece_at(self.piece, self.range.start);
        let pieces: Vec<Range<usize>> = self.merged.pieces_of(self.piece, &range);
        let stretch = pieces.len().div_ceil(pool::threads()).max(1);
        let problem = Problem::default();
        pool::run(pieces.len().div_ceil(stretch), &|task| {
            for piece in &pieces[task * stretch..pieces.len().min((task + 1) * stretch)] {
                let number = self.merged.piece_at(self.piece, piece.start);
                if !(number - first).is_multiple_of(step) {
                    continue;
                }
                let tensors =
                    stored.iter().map(|stored| part(stored, piece.start - range.start, piece.len()));
                let seen = tensors.collect::<Result<Vec<_>>>().and_then(|tensors| {
                    self.show(known, piece, &tensors, &|group| visit(task, number, group))
                });
                if let Err(error) = seen {
                    return problem.note(error);
                }
            }
        });
        problem.into_result()
    }

    /// Puts a piece's values of all inputs together with all that is known of them.
    pub(super) fn show<T>(
        &self,
        known: &Known,
        piece: &Range<usize>,
        tensors: &[Vec<f32>],
        see: &dyn Fn(&Group) -> Result<T>,
    ) -> Result<T> {
        let name = &self.piece.info.name;
        let keeps =
            |input: usize, at: usize, share: f64| self.merged.keeps(name, input, piece.start + at, share);
        let number = self.merged.piece_at(self.piece, piece.start);
        let first = self.merged.piece_at(self.piece, self.range.start);
        see(&Group {
            shape: &self.merged.shape_of(self.piece, piece.len()),
            tensors: tensors.iter().map(Vec::as_slice).collect(),
            base: self.piece.base,
            cuts: known.at(number - first),
            numbers: &known.numbers,
            n_values: self.range.len(),
            values: &self.piece.values,
            keeps: &keeps,
        })
    }
}

impl Merged {
    /// The sections of a tensor, one or two. Rows that stand for no token are merged by themselves, so that they have no say
    /// in angles, sums and ranks over those that do.
    pub(super) fn sections<'s>(&'s self, piece: &'s Piece) -> Vec<Section<'s>> {
        let end = self.tokens_end(piece);
        let ranges = [0..end, end..piece.info.shape.iter().product()];
        let is_wanted = |(at, range): &(usize, Range<usize>)| *at == 0 || !range.is_empty();
        let ranges = ranges.into_iter().enumerate().filter(is_wanted);
        ranges.map(|(_, range)| Section { merged: self, piece, range }).collect()
    }

    /// What the method has found out of each section of a tensor. That of the last tensor is kept.
    pub(super) fn known(&self, piece: &Piece) -> Result<Arc<Vec<Known>>> {
        let mut kept = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, known)) = &*kept
            && *name == piece.info.name
        {
            return Ok(Arc::clone(known));
        }
        *kept = None;
        let sections = self.sections(piece);
        let known = sections.iter().map(|section| (self.method.look)(section)).collect::<Result<Vec<_>>>()?;
        let known = Arc::new(known);
        *kept = Some((piece.info.name.clone(), Arc::clone(&known)));
        Ok(known)
    }
}
