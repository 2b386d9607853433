//! Which tokens stay.

use std::collections::{BTreeMap, BTreeSet};

use luthier_text::trim::Trimmer;

use super::count::Ranking;
use super::{Wish, refused};
use crate::Result;

/// What is wanted, and what the model forces.
pub(super) struct Wanted<'w> {
    pub(super) wish: Wish,
    pub(super) multiple_of: usize,
    /// Rows of the model.
    pub(super) n_rows: usize,
    /// Ids that the config names.
    pub(super) named: &'w BTreeSet<u32>,
}

/// The kept rows.
#[derive(Debug)]
pub(super) struct Selection {
    /// Rising.
    pub(super) kept: Vec<u32>,
    /// How many for which reason.
    pub(super) reasons: BTreeMap<String, usize>,
}

/// Chooses; and says what to know. Refuses a number below what must stay, and one above the model's rows.
pub(super) fn select(
    trimmer: &Trimmer,
    main: &Ranking,
    also: &[(usize, Ranking)],
    wanted: &Wanted,
) -> Result<(Selection, Vec<String>)> {
    let mut notes = Vec::new();
    let mut set = Set::new(trimmer, wanted.n_rows);
    for (id, reason) in trimmer.required() {
        set.add(*id, reason.describe());
    }
    wanted.named.iter().for_each(|id| set.add(*id, "ids that the config names"));
    let n_required = set.kept.len();
    for (quota, ranking) in also {
        let taken = ranking.tokens.iter().take(*quota);
        taken.for_each(|(id, _)| set.add(*id, "frequent in a further text"));
        if ranking.tokens.len() < *quota {
            let came = ranking.tokens.len();
            notes.push(format!("{came} of the {quota} tokens wanted of a further text are all that it uses"));
        }
    }
    const FREQUENT: &str = "frequent in the corpus";
    let mut budget = match wanted.wish {
        Wish::Keep(wish) => budget_of(wish, n_required, &set, wanted)?,
        Wish::Coverage(share) => {
            let enough = (share * main.total as f64).ceil() as u64;
            let count_of = |set: &Set| {
                main.tokens.iter().filter(|(id, _)| set.kept.contains(id)).map(|row| row.1).sum::<u64>()
            };
            let counts: BTreeMap<u32, u64> = main.tokens.iter().copied().collect();
            let mut covered = count_of(&set);
            for (id, _) in &main.tokens {
                if covered >= enough {
                    break;
                }
                let came = set.closure(*id);
                covered += came.iter().filter_map(|id| counts.get(id)).sum::<u64>();
                set.insert(*id, came, FREQUENT);
            }
            set.kept.len()
        }
        Wish::MinCount(least) => {
            let often = main.tokens.iter().filter(|(_, count)| *count >= least);
            often.for_each(|(id, _)| set.add(*id, FREQUENT));
            set.kept.len()
        }
    };
    if wanted.multiple_of > 1 {
        budget = budget.next_multiple_of(wanted.multiple_of);
        if budget > wanted.n_rows {
            let what = format!(
                "--multiple-of {}: {budget} rows would be needed and the model has {}; take a smaller one",
                wanted.multiple_of, wanted.n_rows
            );
            return Err(refused(what));
        }
    }
    main.tokens.iter().for_each(|(id, _)| set.add_within(*id, budget, FREQUENT));
    if set.kept.len() < budget {
        notes.push(format!(
            "the texts use no more tokens: {} more are kept by their number, the first of the vocabulary first",
            budget - set.kept.len()
        ));
        set.fill(budget);
    }
    Ok((Selection { kept: set.kept.into_iter().collect(), reasons: set.reasons }, notes))
}

/// The rows that `--keep` asks for, if they can be.
fn budget_of(wish: usize, n_required: usize, set: &Set, wanted: &Wanted) -> Result<usize> {
    if wish > wanted.n_rows {
        return Err(refused(format!(
            "--keep {wish}: the model has {} rows of tokens; wanted that many or fewer",
            wanted.n_rows
        )));
    }
    let n_kept = set.kept.len();
    if n_kept > wish && n_kept > n_required && n_required <= wish {
        return Err(refused(format!(
            "--keep {wish}: {n_required} tokens must stay and --also brings them to {n_kept}; keep that many or more, or \
             lower the number of --also"
        )));
    }
    if n_kept > wish {
        let reasons: Vec<String> =
            set.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let why = reasons.join(", ");
        return Err(refused(format!(
            "--keep {wish}: {n_kept} tokens must stay ({why}); keep that many or more"
        )));
    }
    Ok(wish)
}

/// Rows so far, closed under what they are made of.
struct Set<'t> {
    trimmer: &'t Trimmer,
    n_rows: usize,
    kept: BTreeSet<u32>,
    reasons: BTreeMap<String, usize>,
}

impl<'t> Set<'t> {
    fn new(trimmer: &'t Trimmer, n_rows: usize) -> Set<'t> {
        Set { trimmer, n_rows, kept: BTreeSet::new(), reasons: BTreeMap::new() }
    }

    /// The token and whatever it is made of, as far as that is not kept yet.
    fn closure(&self, id: u32) -> BTreeSet<u32> {
        let (mut closure, mut open) = (BTreeSet::new(), vec![id]);
        while let Some(id) = open.pop() {
            if !self.kept.contains(&id) && closure.insert(id) {
                open.extend(self.trimmer.parts(id));
            }
        }
        closure
    }

    fn insert(&mut self, id: u32, closure: BTreeSet<u32>, reason: &str) {
        const PARTS: &str = "parts of kept tokens";
        for part in closure {
            *self.reasons.entry(if part == id { reason } else { PARTS }.to_string()).or_default() += 1;
            self.kept.insert(part);
        }
    }

    fn add(&mut self, id: u32, reason: &str) {
        let closure = self.closure(id);
        self.insert(id, closure, reason);
    }

    /// As `add`, where it does not make the set larger than `budget`.
    fn add_within(&mut self, id: u32, budget: usize, reason: &str) {
        if self.kept.len() >= budget || self.kept.contains(&id) {
            return;
        }
        let closure = self.closure(id);
        if self.kept.len() + closure.len() <= budget {
            self.insert(id, closure, reason);
        }
    }

    /// Fills up with tokens by their number, then with rows that have none.
    fn fill(&mut self, budget: usize) {
        let has_token = |id: &u32| self.trimmer.tokenizer().token(*id).is_some();
        let (tokens, padding): (Vec<u32>, Vec<u32>) = (0..self.n_rows as u32).partition(has_token);
        // A token that did not fit for its parts may fit once others have brought them.
        loop {
            let before = self.kept.len();
            tokens.iter().for_each(|id| self.add_within(*id, budget, "first in the vocabulary"));
            if self.kept.len() == before || self.kept.len() >= budget {
                break;
            }
        }
        padding.iter().for_each(|id| self.add_within(*id, budget, "rows without a token"));
    }
}
