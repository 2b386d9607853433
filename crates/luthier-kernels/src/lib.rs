//! Hot loops on slices: packed and quantised matrix products, attention, norms, losses, optimiser steps.
//!
//! Kernels take slices, allocate nothing that outlives the call, and know no tensor framework. Beside each stands a
//! plain reference that its tests compare it with. This is the only crate with `unsafe`, the one file of
//! luthier-checkpoint that maps files into memory aside.
#![allow(unsafe_code)]
// Loops over lanes index several arrays at once, which is what the compiler turns into vector code; coefficients
// carry the digits of their source.
#![allow(clippy::needless_range_loop, clippy::excessive_precision)]

pub mod activation;
pub mod attention;
pub mod bitsandbytes;
pub mod blocks;
pub mod buffer;
pub mod bytes;
pub mod cross_entropy;
pub mod embedding;
mod fixed;
mod float_dot;
mod isa;
pub mod layer_norm;
mod math;
pub mod matmul;
pub mod norm;
pub mod optimizer;
pub mod packed;
pub mod pages;
pub mod pool;
pub mod process;
mod quant_dot;
pub mod rope;
pub mod rows;
pub mod simd;
pub mod symmetric;
pub mod widen;
