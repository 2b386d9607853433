//! What came of an extraction: how well pairs hold what changed, group by group and together.

use std::collections::BTreeMap;

use luthier_checkpoint::LedgerSummary;
use serde::Serialize;

use super::classify::last;
use super::held::{Changes, Held};

/// How well pairs hold what changed.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Group {
    /// The last part of the modules' paths.
    pub name: String,
    /// How many modules.
    pub modules: usize,
    /// The smallest rank.
    pub rank_min: usize,
    /// The largest.
    pub rank_max: usize,
    /// Length of what the pairs miss over the length of the difference (Frobenius), all modules together.
    pub relative_error: f64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Report {
    /// By the last part of the path.
    pub groups: Vec<Group>,
    /// Of all pairs together.
    pub relative_error: f64,
    /// Rank by module.
    pub ranks: BTreeMap<String, usize>,
    /// Tensors that are stored whole.
    pub saved: Vec<String>,
    /// Tensors that did not change.
    pub unchanged: Vec<String>,
    /// Changed matrices that --target-modules does not name, which the adapter lacks.
    pub untargeted: Vec<String>,
    /// Values that the adapter holds.
    pub parameters: usize,
    /// Bytes of its tensors.
    pub size_bytes: usize,
    /// What became of all tensors.
    pub ledger: LedgerSummary,
    /// What to know.
    pub notes: Vec<String>,
}

impl Held {
    /// Errors by the last part of paths, and together.
    pub(super) fn report(&self, changes: &Changes) -> Report {
        let mut groups: BTreeMap<&str, (Group, f64, f64)> = BTreeMap::new();
        let (mut error, mut energy) = (0.0, 0.0);
        for (path, rank, pair_error, pair_energy) in self.pairs() {
            let name = last(path);
            let group = groups.entry(name).or_insert_with(|| {
                let group = Group {
                    name: name.to_string(),
                    modules: 0,
                    rank_min: rank,
                    rank_max: rank,
                    relative_error: 0.0,
                };
                (group, 0.0, 0.0)
            });
            group.0.modules += 1;
            group.0.rank_min = group.0.rank_min.min(rank);
            group.0.rank_max = group.0.rank_max.max(rank);
            (group.1, group.2) = (group.1 + pair_error, group.2 + pair_energy);
            (error, energy) = (error + pair_error, energy + pair_energy);
        }
        let relative = |error: f64, energy: f64| (error / energy.max(f64::MIN_POSITIVE)).sqrt();
        let groups = groups
            .into_values()
            .map(|(group, error, energy)| Group { relative_error: relative(error, energy), ..group });
        Report {
            groups: groups.collect(),
            relative_error: relative(error, energy),
            ranks: self.pairs().map(|(path, rank, ..)| (path.to_string(), rank)).collect(),
            saved: self.saved_tensors(),
            unchanged: changes.unchanged.clone(),
            untargeted: changes.untargeted.clone(),
            parameters: self.infos().iter().map(|info| info.shape.iter().product::<usize>()).sum(),
            size_bytes: 0,
            ledger: LedgerSummary::default(),
            notes: Vec::new(),
        }
    }
}
