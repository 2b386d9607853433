//! A model's tensors as those of its GGUF file.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use luthier_arch::gguf::beside::Beside;
use luthier_arch::gguf::{GgufForm, GgufOrigin, GgufTensor, Transform};
use luthier_checkpoint::{Checkpoint, Dtype, Error, TensorInfo, TensorSource, values};
use luthier_kernels::bytes::SharedBytes;

use super::file_type;
use crate::Result;
use crate::view::find;
use crate::writing::Origin;
/// A model under GGUF's names, transformed and cast when it is read.
pub(in crate::convert) struct View {
    pub(in crate::convert) source: Arc<dyn TensorSource>,
    pub(in crate::convert) tensors: Vec<GgufTensor>,
    /// What goes into the metadata.
    pub(in crate::convert) beside: Vec<Beside>,
    pub(super) infos: Vec<TensorInfo>,
}

impl View {
    pub(super) fn new(model: &Checkpoint, form: GgufForm, dtype: Option<Dtype>) -> Result<View> {
        let source = Arc::clone(&model.tensors);
        let mut infos = Vec::with_capacity(form.tensors.len());
        for tensor in &form.tensors {
            let stored = match &tensor.origin {
                GgufOrigin::Tensor { name, .. } => find(source.infos(), name)?.dtype,
                GgufOrigin::Stacked { names } => stacked_type(source.as_ref(), names)?,
                GgufOrigin::Made(_) => Dtype::F32,
            };
            let info = TensorInfo { name: tensor.name.clone(), dtype: stored, shape: tensor.shape.clone() };
            infos.push(TensorInfo { dtype: file_type(&info, tensor.stays_f32, dtype), ..info });
        }
        let beside = beside(model, &form.tensors)?;
        Ok(View { source, tensors: form.tensors, beside, infos })
    }

    /// Where the file's tensors come from, `kept` being where those of the model do.
    pub(super) fn origins(&self, kept: &[Origin]) -> Vec<Origin> {
        let names = self.source.infos().iter().map(|info| info.name.as_str());
        let of: HashMap<&str, &Origin> = names.zip(kept).collect();
        let own = |name: &String| *of.get(name.as_str()).expect("a view's tensors are those of its model");
        let origin = |tensor: &GgufTensor| {
            let (name, transform) = match &tensor.origin {
                GgufOrigin::Tensor { name, transform } => (name, transform),
                GgufOrigin::Stacked { names } => {
                    return Origin::stacked(&names.iter().map(own).collect::<Vec<_>>());
                }
                GgufOrigin::Made(_) => return Origin::Made("from the config".to_string()),
            };
            let origin = own(name);
            match transform {
                Transform::Keep => origin.clone(),
                Transform::Interleave { .. } => origin.clone().then("rows of heads in GGUF's order"),
                Transform::ScaleStates { .. } => {
                    origin.clone().then("scaled as the states behind it are, which llama.cpp does not do")
                }
                Transform::AddOne => origin.clone().then("1 added, as GGUF stores these norms"),
            }
        };
        self.tensors.iter().map(origin).collect()
    }
}

/// The tensors of a model that are no tensors of its file.
fn beside(model: &Checkpoint, held: &[GgufTensor]) -> Result<Vec<Beside>> {
    let names = held.iter().flat_map(|tensor| match &tensor.origin {
        GgufOrigin::Tensor { name, .. } => std::slice::from_ref(name),
        GgufOrigin::Stacked { names } => names.as_slice(),
        GgufOrigin::Made(_) => &[],
    });
    let held: HashSet<&str> = names.map(String::as_str).collect();
    let ties = luthier_arch::layout_of(model)?.ties;
    let others = model.tensors.infos().iter().filter(|info| !held.contains(info.name.as_str()));
    let one = |info: &TensorInfo| match ties.iter().find(|tie| tie.name == info.name) {
        Some(tie) => Beside::SameAs { name: info.name.clone(), target: tie.target.clone() },
        None => Beside::Bytes(info.clone()),
    };
    Ok(others.map(one).collect())
}

/// The type of tensors that stand one after the other: their own, or F32 where they differ.
fn stacked_type(source: &dyn TensorSource, names: &[String]) -> luthier_checkpoint::Result<Dtype> {
    let mut types = names.iter().map(|name| find(source.infos(), name).map(|info| info.dtype));
    let first = types.next().unwrap_or(Ok(Dtype::F32))?;
    types.try_fold(first, |dtype, other| Ok(if other? == dtype { dtype } else { Dtype::F32 }))
}

impl TensorSource for View {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> luthier_checkpoint::Result<SharedBytes> {
        let sources = match self.position(name).map(|at| &self.tensors[at].origin) {
            Some(GgufOrigin::Tensor { name, .. }) => std::slice::from_ref(name),
            Some(GgufOrigin::Stacked { names }) => names.as_slice(),
            _ => &[],
        };
        for source in sources {
            let dtype = find(self.source.infos(), source)?.dtype;
            values::check_finite(source, dtype, &self.source.read(source)?)?;
        }
        self.read_unchecked(name)
    }
}

impl View {
    fn position(&self, name: &str) -> Option<usize> {
        self.infos.iter().position(|info| info.name == name)
    }

    pub(super) fn read_unchecked(&self, name: &str) -> luthier_checkpoint::Result<SharedBytes> {
        let position =
            self.position(name).ok_or_else(|| Error::tensor(name, "is not part of this GGUF file"))?;
        let (source_name, transform) = match &self.tensors[position].origin {
            GgufOrigin::Made(made) => {
                return Ok(SharedBytes::from_vec(
                    made.iter().flat_map(|value| value.to_le_bytes()).collect(),
                ));
            }
            GgufOrigin::Stacked { names } => return self.stacked(names, &self.infos[position]),
            GgufOrigin::Tensor { name, transform } => (name, transform),
        };
        let info = find(self.source.infos(), source_name)?;
        let bytes = self.source.read(source_name)?;
        let transformed = transform.apply(info, bytes);
        let (dtype, bytes) =
            transformed.map_err(|problem| Error::tensor(source_name, problem.to_string()))?;
        let wanted = self.infos[position].dtype;
        if dtype == wanted {
            Ok(bytes)
        } else {
            Ok(SharedBytes::from_vec(values::cast(name, dtype, &bytes, wanted)?))
        }
    }

    /// Tensors one after the other, in the type of the one that they make.
    fn stacked(&self, names: &[String], whole: &TensorInfo) -> luthier_checkpoint::Result<SharedBytes> {
        let mut all = Vec::with_capacity(whole.dtype.size_bytes(&whole.shape).unwrap_or(0));
        for name in names {
            let dtype = find(self.source.infos(), name)?.dtype;
            let bytes = self.source.read(name)?;
            if dtype == whole.dtype {
                all.extend_from_slice(&bytes);
            } else {
                all.extend_from_slice(&values::cast(name, dtype, &bytes, whole.dtype)?);
            }
        }
        Ok(SharedBytes::from_vec(all))
    }
}
