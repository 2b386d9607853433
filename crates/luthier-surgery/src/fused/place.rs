//! Where an adapter's weights stand in its base.

use std::collections::{BTreeMap, HashSet};

use luthier_checkpoint::TensorInfo;
use luthier_checkpoint::adapter::Adapter;

/// How an adapter's paths become the base's names: what is put before them, or taken away.
pub(super) struct Place {
    added: String,
    removed: String,
}

impl Place {
    /// The way in which most of the adapter's weights are the base's; as they are, where that is as good.
    pub(super) fn find(infos: &BTreeMap<&str, &TensorInfo>, adapter: &Adapter) -> Place {
        let of_modules = adapter.modules.keys().map(|path| format!("{path}.weight"));
        let wanted: HashSet<String> = of_modules.chain(adapter.saved.keys().cloned()).collect();
        let mut ways = vec![(String::new(), String::new())];
        for name in &wanted {
            let tails = name.match_indices('.').map(|(at, _)| (String::new(), name[..=at].to_string()));
            ways.extend(tails.filter(|(_, head)| infos.contains_key(&name[head.len()..])));
            let longer = infos.keys().filter_map(|known| known.strip_suffix(name.as_str()));
            ways.extend(
                longer.filter(|head| head.ends_with('.')).map(|head| (head.to_string(), String::new())),
            );
        }
        let place = |(added, removed): (String, String)| Place { added, removed };
        let mut best = (0, place(ways[0].clone()));
        let mut seen = HashSet::new();
        for way in ways.into_iter().filter(|way| seen.insert(way.clone())) {
            let way = place(way);
            let count = wanted.iter().filter(|name| infos.contains_key(way.name(name).as_str())).count();
            if count > best.0 {
                best = (count, way);
            }
        }
        best.1
    }

    pub(super) fn name(&self, path: &str) -> String {
        format!("{}{}", self.added, path.strip_prefix(self.removed.as_str()).unwrap_or(path))
    }
}
