//! Tied weights under the names at which other programs look for them, where a file carries them once.

use std::collections::HashMap;
use std::sync::Arc;

use luthier_checkpoint::{Checkpoint, Result, TensorInfo, TensorSource};
use luthier_kernels::bytes::SharedBytes;

/// A model's tensors, with those once more that a folder carries twice.
pub(super) struct Twice {
    source: Arc<dyn TensorSource>,
    infos: Vec<TensorInfo>,
    /// From the second name to the first.
    targets: HashMap<String, String>,
}

impl Twice {
    /// `source` with the names that files of this architecture carry too, each right behind the weight that it is; none where
    /// nothing has to be added.
    pub(super) fn of(checkpoint: &Checkpoint, source: &Arc<dyn TensorSource>) -> Option<Arc<Twice>> {
        let layout = luthier_arch::layout_of(checkpoint).ok()?;
        let has = |name: &str| source.infos().iter().any(|info| info.name == name);
        let absent: Vec<_> = layout.ties.iter().filter(|tie| tie.written && !has(&tie.name)).collect();
        let mut infos = Vec::with_capacity(source.infos().len() + absent.len());
        let mut targets = HashMap::new();
        for info in source.infos() {
            infos.push(info.clone());
            for tie in absent.iter().filter(|tie| tie.target == info.name) {
                infos.push(TensorInfo { name: tie.name.clone(), ..info.clone() });
                targets.insert(tie.name.clone(), tie.target.clone());
            }
        }
        (!targets.is_empty()).then(|| Arc::new(Twice { source: Arc::clone(source), infos, targets }))
    }

    /// The weight that this name stands for once more.
    pub(super) fn target(&self, name: &str) -> Option<&str> {
        self.targets.get(name).map(String::as_str)
    }
}

impl TensorSource for Twice {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        self.source.read(self.target(name).unwrap_or(name))
    }
}
