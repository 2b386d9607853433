//! One weight of a folder of bitsandbytes', to be rounded again as it was.

use luthier_checkpoint::bitsandbytes::QuantState;
use luthier_checkpoint::{Dtype, Error, TensorInfo, values};
use luthier_kernels::bitsandbytes::{BLOCK_LEN, Levels, NESTED_BLOCK_LEN};
use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;

use super::bitsandbytes::{Rounded, Scheme, four_bits, int8, mean_scale, part_infos};
use crate::Result;

/// A weight and how it is rounded.
pub(crate) struct Weight {
    scheme: Scheme,
    /// The weight as floats: its name, the type that its state names, its shape.
    pub(crate) info: TensorInfo,
    offset: Option<f32>,
}

impl Weight {
    /// A weight of 4 bits. Refuses blocks of other lengths than bitsandbytes makes by itself.
    pub(crate) fn four_bits(name: &str, levels: Levels, state: &QuantState) -> Result<Weight> {
        let known = [Dtype::F32, Dtype::F16, Dtype::BF16];
        let dtype = known
            .into_iter()
            .find(|dtype| luthier_checkpoint::bitsandbytes::torch_name(*dtype) == Some(&state.dtype));
        let is_usual =
            state.blocksize == BLOCK_LEN && state.nested_blocksize.is_none_or(|len| len == NESTED_BLOCK_LEN);
        let Some(dtype) = dtype.filter(|_| is_usual) else {
            let what = format!(
                "is rounded in blocks of {} ({:?}) from {}; wanted {BLOCK_LEN} ({NESTED_BLOCK_LEN}), to round it again; take --dtype",
                state.blocksize, state.nested_blocksize, state.dtype
            );
            return Err(Error::tensor(name, what).into());
        };
        let nested = state.nested_blocksize.is_some();
        let info = TensorInfo { name: name.to_string(), dtype, shape: state.shape.clone() };
        Ok(Weight { scheme: Scheme::FourBits { levels, nested }, info, offset: state.nested_offset })
    }

    /// A weight of 8 bits.
    pub(crate) fn int8(name: &str, shape: Vec<usize>) -> Weight {
        let info = TensorInfo { name: name.to_string(), dtype: Dtype::F32, shape };
        Weight { scheme: Scheme::Int8, info, offset: None }
    }

    /// As bitsandbytes names its type.
    pub(crate) fn name(&self) -> &'static str {
        self.scheme.name()
    }

    /// Finds what new values, of that type, ask to be added to rounded scales; nothing where scales are not rounded.
    pub(crate) fn fix_offset(&mut self, (dtype, bytes): (Dtype, &[u8])) -> Result<()> {
        if matches!(self.scheme, Scheme::FourBits { nested: true, .. }) {
            let wide = values::cast(&self.info.name, dtype, bytes, Dtype::F32)?;
            self.offset = Some(mean_scale((BlockType::F32, &wide), &self.info)?);
        }
        Ok(())
    }

    /// New values, of that type, as the weight's parts.
    pub(crate) fn round(&self, (dtype, bytes): (Dtype, &[u8])) -> Result<Vec<(TensorInfo, SharedBytes)>> {
        values::check_finite(&self.info.name, dtype, bytes)?;
        let wide = values::cast(&self.info.name, dtype, bytes, Dtype::F32)?;
        let rounded = self.rounded();
        let parts = match self.scheme {
            Scheme::FourBits { levels, .. } => four_bits(levels, (BlockType::F32, &wide), &rounded)?,
            Scheme::Int8 => int8((BlockType::F32, &wide), &self.info)?,
        };
        Ok(part_infos(self.scheme, &rounded)?
            .into_iter()
            .zip(parts.into_iter().map(SharedBytes::from_vec))
            .collect())
    }

    fn rounded(&self) -> Rounded {
        Rounded { info: self.info.clone(), offset: self.offset }
    }
}

/// Names, types and shapes of a weight's parts.
pub(crate) fn infos(weight: &Weight) -> Result<Vec<TensorInfo>> {
    part_infos(weight.scheme, &weight.rounded())
}
