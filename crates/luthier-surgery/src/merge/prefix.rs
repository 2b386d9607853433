//! Models of one kind whose tensors differ by what stands before their names (`bert.encoder...` and `encoder...`).

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use luthier_checkpoint::{Checkpoint, Result, TensorInfo, TensorSource};
use luthier_kernels::bytes::SharedBytes;

use crate::Input;
use crate::input::Derived;
use crate::view::find;

/// The inputs under the first one's names: where another has more of these names with one prefix put before its own or taken
/// away, it is seen so. Notes say it.
pub(crate) fn under_one_name(inputs: &[Input], notes: &mut Vec<String>) -> Vec<Input> {
    let wanted: HashSet<&str> = names(&inputs[0]).collect();
    let renamed = inputs.iter().map(|input| {
        let Some((way, count)) = Way::find(&wanted, input) else { return input.clone() };
        notes.push(format!(
            "{}: {} for {count} tensors, to have the names of {}",
            input.label,
            way.words(),
            inputs[0].label
        ));
        renamed(input, &wanted, &way)
    });
    renamed.collect()
}

fn names(input: &Input) -> impl Iterator<Item = &str> {
    input.checkpoint.tensors.infos().iter().map(|info| info.name.as_str())
}

/// A prefix that is added or removed.
enum Way {
    Add(String),
    Remove(String),
}

impl Way {
    /// The way in which most names are among the wanted ones, where that is more than there are without it.
    fn find(wanted: &HashSet<&str>, input: &Input) -> Option<(Way, usize)> {
        let unchanged = names(input).filter(|name| wanted.contains(name)).count();
        let heads =
            |name: &str| name.match_indices('.').map(|(at, _)| name[..=at].to_string()).collect::<Vec<_>>();
        let removed: HashSet<String> = names(input).flat_map(heads).collect();
        let added: HashSet<String> = wanted.iter().flat_map(|name| heads(name)).collect();
        let mut ways: Vec<Way> =
            removed.into_iter().map(Way::Remove).chain(added.into_iter().map(Way::Add)).collect();
        ways.sort_by_key(Way::words);
        let own: HashSet<&str> = names(input).collect();
        let count = |way: &Way| names(input).filter(|name| way.name(name, wanted, &own) != **name).count();
        let counted = ways.into_iter().map(|way| {
            let count = count(&way);
            (way, count)
        });
        let best = counted.max_by_key(|(_, count)| *count)?;
        (best.1 > unchanged).then_some(best)
    }

    /// The new name, where it is a wanted one and not taken; else the name as it is.
    fn name(&self, name: &str, wanted: &HashSet<&str>, own: &HashSet<&str>) -> String {
        let new = match self {
            Way::Add(head) => Some(format!("{head}{name}")),
            Way::Remove(head) => name.strip_prefix(head.as_str()).map(str::to_string),
        };
        new.filter(|new| wanted.contains(new.as_str()) && !own.contains(new.as_str()))
            .unwrap_or_else(|| name.to_string())
    }

    fn words(&self) -> String {
        match self {
            Way::Add(head) => format!("prefix {head} added"),
            Way::Remove(head) => format!("prefix {head} removed"),
        }
    }
}

fn renamed(input: &Input, wanted: &HashSet<&str>, way: &Way) -> Input {
    let source = Arc::clone(&input.checkpoint.tensors);
    let own: HashSet<&str> = names(input).collect();
    let mut old_names = HashMap::new();
    let mut infos = Vec::new();
    for info in source.infos() {
        let name = way.name(&info.name, wanted, &own);
        old_names.insert(name.clone(), info.name.clone());
        infos.push(TensorInfo { name, ..info.clone() });
    }
    let sources = old_names.iter().map(|(new, old)| (new.clone(), vec![(0, old.clone())])).collect();
    let derived = Derived { parts: vec![input.clone()], sources, unused: Vec::new(), size_bytes: 0 };
    let tensors = Arc::new(Renamed { source, infos, old_names });
    Input {
        label: input.label.clone(),
        checkpoint: Checkpoint { tensors, ..input.checkpoint.clone() },
        record: input.record.clone(),
        derived: Some(Arc::new(derived)),
    }
}

/// Another source's tensors under other names.
struct Renamed {
    source: Arc<dyn TensorSource>,
    infos: Vec<TensorInfo>,
    old_names: HashMap<String, String>,
}

impl Renamed {
    fn old(&self, name: &str) -> Result<&str> {
        let name = &find(&self.infos, name)?.name;
        Ok(self.old_names.get(name).unwrap_or(name))
    }
}

impl TensorSource for Renamed {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        self.source.read(self.old(name)?)
    }

    fn part_bytes(&self, name: &str) -> Option<usize> {
        self.source.part_bytes(self.old(name).ok()?)
    }

    fn read_part(&self, name: &str, range: Range<usize>) -> Result<SharedBytes> {
        self.source.read_part(self.old(name)?, range)
    }
}
