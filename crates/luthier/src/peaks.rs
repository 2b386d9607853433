//! What this machine can do at most, to see a model's speed beside it: measured in about a second.

use std::hint::black_box;
use std::time::Instant;

use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;
use luthier_kernels::matmul::{View, Write, matmul};
use luthier_kernels::packed::{Kind, Packed, Precision, Stored};
use luthier_kernels::pool;
use serde::Serialize;

/// Bytes that are read: more than caches hold.
const MEMORY_BYTES: usize = 192 << 20;
const SIDE: usize = 768;
const ROUNDS: usize = 5;

/// The best of some rounds, on the threads that the program uses.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peaks {
    /// Products of f32 matrices.
    pub f32_gflop_per_s: f64,
    /// Products of whole numbers of 8 bits.
    pub int8_gop_per_s: f64,
    /// Reading memory.
    pub memory_gb_per_s: f64,
}

/// Measures them.
pub fn measure() -> Peaks {
    let [f32_gflop_per_s, int8_gop_per_s] = products(SIDE, ROUNDS);
    // Untouched pages are all one page of zeros.
    let memory = vec![1u8; MEMORY_BYTES];
    let memory_gb_per_s = MEMORY_BYTES as f64 / 1e9 / best(ROUNDS, || read_all(&memory));
    Peaks { f32_gflop_per_s, int8_gop_per_s, memory_gb_per_s }
}

/// Billions of multiplications and additions a second of products of two square matrices: in f32, in whole numbers of 8
/// bits.
pub fn products(side: usize, rounds: usize) -> [f64; 2] {
    let operations = 2.0 * (side * side * side) as f64 / 1e9;
    let (a, b) = (vec![0.5f32; side * side], vec![0.25f32; side * side]);
    let mut c = vec![0f32; side * side];
    let in_f32 = best(rounds, || {
        matmul(side, side, side, View::rows(&a, side), View::rows(&b, side), &mut c, Write::Overwrite);
    });
    let source = vec![1u8; side * side / 32 * 34];
    let mut target = vec![0u8; Packed::bytes_for(Kind::Blocks(BlockType::Q8_0), side, side).unwrap_or(0)];
    let layout = Packed::pack(Stored::Blocks(BlockType::Q8_0, &source), side, side, &mut target);
    let whole = Packed::new(layout, SharedBytes::from_vec(target), Precision::Fast);
    let in_whole = best(rounds, || whole.multiply(&a, side, &mut c));
    [operations / in_f32, operations / in_whole]
}

impl Peaks {
    /// In words.
    pub fn describe(&self) -> String {
        format!(
            "This machine does at most {:.0} GFLOP/s in f32 products, {:.0} in products of whole numbers, and reads {:.1} GB/s \
             from memory (more from caches).",
            self.f32_gflop_per_s, self.int8_gop_per_s, self.memory_gb_per_s
        )
    }
}

/// Seconds of the fastest round, after one that does not count.
pub fn best(rounds: usize, mut work: impl FnMut()) -> f64 {
    work();
    let seconds = (0..rounds).map(|_| {
        let started = Instant::now();
        work();
        started.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}

/// Reads every byte, on all threads.
pub fn read_all(bytes: &[u8]) {
    let part = bytes.len().div_ceil(pool::threads() * 4).next_multiple_of(64);
    pool::run(bytes.len().div_ceil(part), &|task| {
        let bytes = &bytes[task * part..bytes.len().min((task + 1) * part)];
        let mut sums = [0u64; 16];
        for line in bytes.as_chunks::<128>().0 {
            for (sum, word) in sums.iter_mut().zip(line.as_chunks().0) {
                *sum ^= u64::from_le_bytes(*word);
            }
        }
        black_box(sums);
    });
}
