//! Which of several forms each of many things gets so that all together lose least within a size: the multiple-choice
//! knapsack problem.
//!
//! Greedy along the lower convex hulls of size and error, best gain for a byte first (Sinha and Zoltners, "The
//! Multiple-Choice Knapsack Problem", Operations Research 27(3), 1979), which also bounds what any choice can reach. What
//! is left of the size is filled by exchanging one form or two for as long as that lowers the error. Depends on nothing
//! but its arguments, their order included.

/// One form that a thing can have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Form {
    pub(super) size_bytes: u64,
    /// What is lost; finite.
    pub(super) error: f64,
}

/// A form for each thing.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Allocation {
    /// Number of each thing's form.
    pub(super) chosen: Vec<usize>,
    /// Of all together.
    pub(super) size_bytes: u64,
    /// Sum of all.
    pub(super) error: f64,
    /// No choice of this size has a smaller sum.
    pub(super) least_error: f64,
}

/// Things whose forms are all tried: beside a large one, exchanges of two forms free too little room.
const N_TRIED: usize = 2;

/// The forms that lose least within `size_bytes`; none where the smallest of all are too large. Every thing has a form.
pub(super) fn allocate(things: &[Vec<Form>], size_bytes: u64) -> Option<Allocation> {
    let largest = |thing: &usize| things[*thing].iter().map(|form| form.size_bytes).max();
    let mut order: Vec<usize> = (0..things.len()).collect();
    order.sort_by_key(|thing| (std::cmp::Reverse(largest(thing)), *thing));
    order.truncate(N_TRIED);
    let (mut best, mut least_error): (Option<Allocation>, f64) = (None, f64::INFINITY);
    let mut tried = things.to_vec();
    let n_combinations: usize = order.iter().map(|thing| things[*thing].len()).product();
    for mut combination in 0..n_combinations {
        let mut forms = Vec::new();
        for &thing in &order {
            forms.push(combination % things[thing].len());
            combination /= things[thing].len();
            tried[thing] = vec![things[thing][forms[forms.len() - 1]]];
        }
        let Some(mut found) = allocate_rest(&tried, size_bytes) else { continue };
        least_error = least_error.min(found.least_error);
        if best.as_ref().is_none_or(|best| found.error < best.error) {
            for (&thing, form) in order.iter().zip(forms) {
                found.chosen[thing] = form;
            }
            best = Some(found);
        }
    }
    best.map(|best| Allocation { least_error: least_error.min(best.error), ..best })
}

/// By climbing and exchanging alone.
fn allocate_rest(things: &[Vec<Form>], size_bytes: u64) -> Option<Allocation> {
    let hulls: Vec<Vec<usize>> = things.iter().map(|forms| hull(forms)).collect();
    let mut state = State { things, chosen: hulls.iter().map(|hull| hull[0]).collect(), size_bytes };
    if state.used_bytes() > size_bytes {
        return None;
    }
    let (price, least_error) = state.climb(&hulls);
    state.exchange(price, least_error);
    let (size_bytes, error) = (state.used_bytes(), state.error());
    Some(Allocation { chosen: state.chosen, size_bytes, error, least_error: least_error.min(error) })
}

/// The forms that are best for some price of a byte, from the smallest to the one that loses least.
fn hull(forms: &[Form]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..forms.len()).collect();
    let key = |at: usize| forms[at];
    order.sort_by(|&a, &b| {
        key(a).size_bytes.cmp(&key(b).size_bytes).then(key(a).error.total_cmp(&key(b).error)).then(a.cmp(&b))
    });
    let mut hull: Vec<usize> = Vec::new();
    for at in order {
        if hull.last().is_some_and(|&last| forms[last].error <= forms[at].error) {
            continue;
        }
        while let [.., before, last] = hull[..]
            && gain_a_byte(forms[before], forms[last]) <= gain_a_byte(forms[before], forms[at])
        {
            hull.pop();
        }
        hull.push(at);
    }
    hull
}

/// How much less the larger form loses, for each byte that it is larger.
fn gain_a_byte(small: Form, large: Form) -> f64 {
    (small.error - large.error) / (large.size_bytes - small.size_bytes) as f64
}

/// Another form for one thing, and what that changes.
#[derive(Clone, Copy)]
struct Move {
    thing: usize,
    form: usize,
    bytes: i64,
    error: f64,
}

struct State<'t> {
    things: &'t [Vec<Form>],
    chosen: Vec<usize>,
    size_bytes: u64,
}

impl State<'_> {
    fn form(&self, thing: usize) -> Form {
        self.things[thing][self.chosen[thing]]
    }

    fn used_bytes(&self) -> u64 {
        (0..self.things.len()).map(|thing| self.form(thing).size_bytes).sum()
    }

    fn error(&self) -> f64 {
        (0..self.things.len()).map(|thing| self.form(thing).error).sum()
    }

    /// Goes up the hulls while there is room. The gain of a byte at which the room first ended (0 where it never did), and the
    /// error that mixing two forms of the thing at that point would leave, below which no choice comes.
    fn climb(&mut self, hulls: &[Vec<usize>]) -> (f64, f64) {
        struct Step {
            thing: usize,
            rung: usize,
            gain_a_byte: f64,
        }
        let mut steps: Vec<Step> = Vec::new();
        for (thing, hull) in hulls.iter().enumerate() {
            for (rung, pair) in hull.windows(2).enumerate() {
                let gain_a_byte = gain_a_byte(self.things[thing][pair[0]], self.things[thing][pair[1]]);
                steps.push(Step { thing, rung, gain_a_byte });
            }
        }
        // Of one thing the steps gain less and less, so that they stay in their order.
        steps.sort_by(|a, b| {
            b.gain_a_byte.total_cmp(&a.gain_a_byte).then(a.thing.cmp(&b.thing)).then(a.rung.cmp(&b.rung))
        });
        let (mut bound, mut used, mut error) = (None, self.used_bytes(), self.error());
        for Step { thing, rung, gain_a_byte } in steps {
            if self.chosen[thing] != hulls[thing][rung] {
                continue; // A step before it did not fit.
            }
            let (from, to) = (self.form(thing), self.things[thing][hulls[thing][rung + 1]]);
            let more = to.size_bytes - from.size_bytes;
            if used + more <= self.size_bytes {
                self.chosen[thing] = hulls[thing][rung + 1];
                (used, error) = (used + more, error - (from.error - to.error));
            } else if bound.is_none() {
                bound = Some((gain_a_byte, error - gain_a_byte * (self.size_bytes - used) as f64));
            }
        }
        bound.unwrap_or((0.0, self.error()))
    }

    /// Exchanges one form, or one for a smaller and one for a larger one, as long as that lowers the error.
    fn exchange(&mut self, price: f64, least_error: f64) {
        loop {
            let gap = self.error() - least_error;
            let mut moves = self.moves(price, gap);
            moves.sort_by(|a, b| {
                (a.bytes.cmp(&b.bytes)).then(a.error.total_cmp(&b.error)).then(a.thing.cmp(&b.thing))
            });
            let room = (self.size_bytes - self.used_bytes()) as i64;
            // What is within the accuracy of the sums is no gain.
            let Some(best) = best_pair(&moves, room).filter(|best| best.0 < -1e-12 * self.error()) else {
                return;
            };
            for made in best.1.into_iter().flatten() {
                self.chosen[made.thing] = made.form;
            }
        }
    }

    /// All other forms that can be part of a choice which loses less than this one. At this price of a byte a choice loses at
    /// least `least_error` and, for each thing, what its form is dearer than the thing's cheapest form.
    fn moves(&self, price: f64, gap: f64) -> Vec<Move> {
        let mut moves = Vec::new();
        for (thing, forms) in self.things.iter().enumerate() {
            let cost = |form: &Form| form.error + price * form.size_bytes as f64;
            let cheapest = forms.iter().map(cost).fold(f64::INFINITY, f64::min);
            let now = self.form(thing);
            for (at, form) in forms.iter().enumerate() {
                if at != self.chosen[thing] && cost(form) - cheapest <= gap {
                    let bytes = form.size_bytes as i64 - now.size_bytes as i64;
                    moves.push(Move { thing, form: at, bytes, error: form.error - now.error });
                }
            }
        }
        moves
    }
}

/// The move, or the two of different things, that change the error most for the better and need `room` at most. `moves`
/// are sorted by their bytes.
fn best_pair(moves: &[Move], room: i64) -> Option<(f64, [Option<Move>; 2])> {
    let mut best: Option<(f64, [Option<Move>; 2])> = None;
    // Of the moves that fit beside the present one: the best, and the best of another thing.
    let mut partners: [Option<Move>; 2] = [None, None];
    let mut n_seen = 0;
    for one in moves.iter().rev() {
        while let Some(next) = moves.get(n_seen).filter(|next| next.bytes + one.bytes <= room) {
            match partners {
                [Some(first), _] if first.thing == next.thing => {
                    if next.error < first.error {
                        partners[0] = Some(*next);
                    }
                }
                [Some(first), _] if first.error <= next.error => {
                    if partners[1].is_none_or(|second| next.error < second.error) {
                        partners[1] = Some(*next);
                    }
                }
                [first, _] => partners = [Some(*next), first],
            }
            n_seen += 1;
        }
        let alone = (one.bytes <= room).then_some((one.error, [Some(*one), None]));
        let partner = partners.into_iter().flatten().find(|partner| partner.thing != one.thing);
        let both = partner.map(|partner| (one.error + partner.error, [Some(*one), Some(partner)]));
        for found in [alone, both].into_iter().flatten() {
            if best.is_none_or(|best| found.0 < best.0) {
                best = Some(found);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn form(size_bytes: u64, error: f64) -> Form {
        Form { size_bytes, error }
    }

    /// The least error of all choices.
    fn exhaustive(things: &[Vec<Form>], size_bytes: u64) -> Option<f64> {
        let Some((first, rest)) = things.split_first() else { return Some(0.0) };
        let fitting = first.iter().filter(|form| form.size_bytes <= size_bytes);
        let sums = fitting
            .filter_map(|form| exhaustive(rest, size_bytes - form.size_bytes).map(|sum| sum + form.error));
        sums.min_by(f64::total_cmp)
    }

    #[test]
    fn forms_off_the_hull_fill_what_is_left() {
        // Of each thing the middle form lies above the line between the others.
        let things = vec![vec![form(10, 10.0), form(16, 9.0), form(20, 1.0)]; 2];
        let found = allocate(&things, 36).unwrap();
        assert_eq!((found.size_bytes, found.error), (36, 10.0));
        assert!(found.least_error <= found.error);
        assert_eq!(allocate(&things, 19), None);
        assert_eq!(allocate(&things, 20).unwrap().error, 20.0);
        assert_eq!(allocate(&things, 1000).unwrap().error, 2.0);
        assert_eq!(allocate(&[], 0).unwrap().size_bytes, 0);
    }

    #[test]
    fn dominated_forms_are_never_chosen() {
        let things = vec![vec![form(10, 5.0), form(10, 4.0), form(12, 6.0), form(14, 4.0)]];
        assert_eq!(allocate(&things, 100).unwrap().chosen, [1]);
    }

    proptest! {
        #[test]
        fn choices_fit_and_come_near_the_best(
            sizes in prop::collection::vec(prop::collection::vec((1u64..60, 0u32..1000), 1..5), 1..7),
            share in 0.0f64..1.2,
        ) {
            let things: Vec<Vec<Form>> = sizes
                .iter()
                .map(|forms| forms.iter().map(|&(size, error)| form(size, f64::from(error))).collect())
                .collect();
            let largest: u64 = things.iter().map(|forms| forms.iter().map(|form| form.size_bytes).max().unwrap()).sum();
            let size_bytes = (largest as f64 * share) as u64;
            let best = exhaustive(&things, size_bytes);
            let found = allocate(&things, size_bytes);
            prop_assert_eq!(best.is_some(), found.is_some());
            if let (Some(best), Some(found)) = (best, found) {
                prop_assert!(found.size_bytes <= size_bytes);
                prop_assert!(found.least_error <= best + 1e-9);
                // The hull's last step is all that greedy can lose.
                let step = things.iter().flatten().map(|form| form.error).fold(0.0, f64::max);
                prop_assert!(found.error <= best + step + 1e-9, "{} of {best}", found.error);
            }
        }
    }
}
