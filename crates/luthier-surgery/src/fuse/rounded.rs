//! A base's tensors with those that changed rounded to the types that they had.

use std::collections::HashSet;
use std::sync::Arc;

use luthier_checkpoint::{Dtype, Error, Result, TensorInfo, TensorSource, values};
use luthier_kernels::blocks::{self, BlockType, Unfit};
use luthier_kernels::bytes::SharedBytes;

use crate::view::find;

/// Tensors under the base's names, in its types.
pub(super) struct Rounded {
    /// With what changed in f32.
    exact: Arc<dyn TensorSource>,
    base: Arc<dyn TensorSource>,
    changed: HashSet<String>,
}

impl Rounded {
    pub(super) fn new(
        exact: Arc<dyn TensorSource>,
        base: Arc<dyn TensorSource>,
        changed: HashSet<String>,
    ) -> Rounded {
        Rounded { exact, base, changed }
    }
}

impl TensorSource for Rounded {
    fn infos(&self) -> &[TensorInfo] {
        self.base.infos()
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let info = find(self.base.infos(), name)?;
        if !self.changed.contains(name) {
            return self.base.read(name);
        }
        let exact = find(self.exact.infos(), name)?.dtype;
        let bytes = self.exact.read(name)?;
        round(info, (exact, &bytes)).map(SharedBytes::from_vec)
    }
}

/// Values, in f32 or what a tensor is stored in elsewhere, as the type that `info` says.
pub(super) fn round(info: &TensorInfo, (from, bytes): (Dtype, &[u8])) -> Result<Vec<u8>> {
    let name = &info.name;
    values::check_finite(name, from, bytes)?;
    let (Dtype::Weights(to), Some(size)) = (info.dtype, info.dtype.size_bytes(&info.shape)) else {
        return values::cast(name, from, bytes, info.dtype);
    };
    if to.block_len() == 1 {
        return values::cast(name, from, bytes, info.dtype);
    }
    let wide = values::cast(name, from, bytes, Dtype::F32)?;
    let columns = info.shape.last().copied().unwrap_or(0);
    let mut target = vec![0u8; size];
    blocks::quantize((BlockType::F32, &wide), to, columns, None, &mut target).map_err(|unfit| {
        let what = match unfit {
            Unfit::NotFinite(at) => format!("value {at} is NaN or infinite after fusing"),
            Unfit::TooLarge(at) => {
                format!("value {at} is too large for {} after fusing; take --dtype f32", info.dtype)
            }
        };
        Error::tensor(name, what)
    })?;
    Ok(target)
}
