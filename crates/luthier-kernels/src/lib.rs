//! Hot loops on slices: packed and quantised matrix products, attention, norms, losses, optimiser steps.
//!
//! Kernels take slices, allocate nothing that outlives the call, and know no tensor framework. Beside each stands a
//! plain reference that its tests compare it with. This is the only crate with `unsafe`, the one file of
//! luthier-checkpoint that maps files into memory aside.
#![allow(unsafe_code)]

pub mod attention;
pub mod blocks;
pub mod buffer;
pub mod bytes;
mod math;
pub mod matmul;
pub mod norm;
pub mod pool;
pub mod rows;
mod simd;
pub mod widen;
