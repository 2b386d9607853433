//! A model's tensors with some of their rows of tokens.

use std::collections::HashMap;
use std::sync::Arc;

use luthier_checkpoint::layout::{Layout, Space};
use luthier_checkpoint::{Error, Result, TensorInfo, TensorSource};
use luthier_kernels::bytes::SharedBytes;

use crate::view::find;

/// Rows of the model's vocabulary. Refuses a model without one, and one with two of different sizes.
pub(super) fn rows(layout: &Layout) -> crate::Result<usize> {
    let mut found: Option<(usize, &str)> = None;
    for spec in &layout.tensors {
        for (axis, space) in spec.shape.iter().zip(&spec.spaces) {
            match found {
                _ if *space != Space::Vocab => {}
                Some((rows, first)) if rows != *axis => {
                    let what = format!(
                        "has {axis} rows of tokens, and {first} has {rows}; a model of two vocabularies cannot be trimmed \
                         with one"
                    );
                    return Err(Error::tensor(&spec.name, what).into());
                }
                _ => found = Some((*axis, &spec.name)),
            }
        }
    }
    let none = || super::refused("the model has no tensor with an axis of tokens".to_string());
    found.map(|(rows, _)| rows).ok_or_else(none)
}

/// The axis of tokens of each tensor that has one, second names of tied weights included.
pub(super) fn axes(layout: &Layout) -> HashMap<String, usize> {
    let axis = |spaces: &[Space]| spaces.iter().position(|space| *space == Space::Vocab);
    let own = layout.tensors.iter().filter_map(|spec| Some((spec.name.clone(), axis(&spec.spaces)?)));
    let mut axes: HashMap<String, usize> = own.collect();
    for tie in &layout.ties {
        if let Some(axis) = axes.get(&tie.target).copied() {
            axes.insert(tie.name.clone(), axis);
        }
    }
    axes
}

/// Another source's tensors, those with an axis of tokens cut to the kept ones.
pub(super) struct Cut {
    source: Arc<dyn TensorSource>,
    infos: Vec<TensorInfo>,
    axes: HashMap<String, usize>,
    kept: Vec<u32>,
}

impl Cut {
    /// Refuses blocks of quantised values that lie across tokens: they would have to be rounded again.
    pub(super) fn new(
        source: Arc<dyn TensorSource>,
        axes: HashMap<String, usize>,
        kept: &[u32],
    ) -> Result<Cut> {
        let mut infos = source.infos().to_vec();
        for info in &mut infos {
            let Some(&axis) = axes.get(&info.name) else { continue };
            if info.dtype.block().0 > 1 && axis + 1 == info.shape.len() {
                let what = format!(
                    "its {} blocks lie across tokens and would have to be rounded again; trim the model before it is \
                     quantised",
                    info.dtype
                );
                return Err(Error::tensor(&info.name, what));
            }
            info.shape[axis] = kept.len();
        }
        Ok(Cut { source, infos, axes, kept: kept.to_vec() })
    }

    /// Whether this tensor has an axis of tokens.
    pub(super) fn cuts(&self, name: &str) -> bool {
        self.axes.contains_key(name)
    }
}

impl TensorSource for Cut {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let bytes = self.source.read(name)?;
        let info = find(self.source.infos(), name)?;
        let Some(&axis) = self.axes.get(name) else { return Ok(bytes) };
        if self.kept.len() == info.shape[axis] {
            return Ok(bytes);
        }
        let (n_outer, n_rows) = (info.shape[..axis].iter().product::<usize>(), info.shape[axis]);
        let row = bytes.len().checked_div(n_outer * n_rows).unwrap_or(0);
        let mut cut = Vec::with_capacity(n_outer * self.kept.len() * row);
        for outer in 0..n_outer {
            let rows = &bytes[outer * n_rows * row..][..n_rows * row];
            self.kept.iter().for_each(|&id| cut.extend_from_slice(&rows[id as usize * row..][..row]));
        }
        Ok(SharedBytes::from_vec(cut))
    }
}
