//! `cargo xtask bench machine`: the peaks of this machine, which other reports state their distance from.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;
use luthier_kernels::matmul::{View, Write, matmul};
use luthier_kernels::packed::{Kind, Packed, Precision, Stored};
use luthier_kernels::pages::LargePages;
use luthier_kernels::pool;
use serde_json::json;

use super::{number, say, write_run};

pub(super) const HELP: &str = "bench machine [--rounds 5] [--threads 2]
  Matrix products in f32 and in whole numbers, reading memory and cache, reading and copying a file. Needs 1 GB of memory
  and of disk.";

/// Bytes that are read from memory: no cache holds them.
const MEMORY_BYTES: usize = 512 << 20;
/// Bytes that every core's second cache and the shared one hold.
const CACHE_BYTES: usize = 4 << 20;
const SIDE: usize = 1024;

/// Measures everything `rounds` times; the best of them is the peak.
pub(super) fn run(arguments: &[String]) -> Result<()> {
    let (rounds, threads) = (number(arguments, "--rounds", 5)?.max(1), number(arguments, "--threads", 2)?);
    pool::set_threads(threads);
    let products = 2.0 * (SIDE * SIDE * SIDE) as f64 / 1e9;
    let (a, b) = (vec![0.5f32; SIDE * SIDE], vec![0.25f32; SIDE * SIDE]);
    let mut c = vec![0f32; SIDE * SIDE];
    let f32_gflops = products
        / best(rounds, || {
            matmul(SIDE, SIDE, SIDE, View::rows(&a, SIDE), View::rows(&b, SIDE), &mut c, Write::Overwrite);
        });
    let weights = whole_numbers();
    let int8_gops = products / best(rounds, || weights.multiply(&a, SIDE, &mut c));
    let mut memory = LargePages::zeroed(MEMORY_BYTES)?;
    // Untouched pages are all one page of zeros.
    memory.as_mut().fill(1);
    let memory_gb = MEMORY_BYTES as f64 / 1e9 / best(rounds, || read_all(memory.as_ref()));
    const TURNS: usize = 64;
    let cache = &memory.as_ref()[..CACHE_BYTES];
    let cached = best(rounds, || (0..TURNS).for_each(|_| read_all(cache)));
    let cache_gb = (TURNS * CACHE_BYTES) as f64 / 1e9 / cached;
    let folder = crate::root().join("target/bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (disk_read_gb, disk_copy_gb) = disk(&folder, memory.as_ref(), rounds)?;
    say(&format!(
        "{threads} threads: f32 products {f32_gflops:.0} GFLOP/s, whole numbers {int8_gops:.0} GOP/s, memory {memory_gb:.1} GB/s, \
         cache {cache_gb:.0} GB/s, a cached file {disk_read_gb:.1} GB/s, copying it to the disk {disk_copy_gb:.2} GB/s"
    ));
    write_run(
        "machine",
        &json!({
            "threads": threads, "rounds": rounds, "f32_gflops": f32_gflops, "int8_gops": int8_gops,
            "memory_read_gb_per_s": memory_gb, "cache_read_gb_per_s": cache_gb,
            "cached_file_read_gb_per_s": disk_read_gb, "file_copy_gb_per_s": disk_copy_gb,
        }),
    )
}

/// Seconds of the fastest run, after one that does not count.
fn best(rounds: usize, mut work: impl FnMut()) -> f64 {
    work();
    let seconds = (0..rounds).map(|_| {
        let started = Instant::now();
        work();
        started.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}

/// A matrix of bytes for products with inputs of 8 bits.
fn whole_numbers() -> Packed {
    let source = vec![1u8; SIDE * SIDE / 32 * 34];
    let mut target = vec![0u8; Packed::bytes_for(Kind::Blocks(BlockType::Q8_0), SIDE, SIDE).unwrap_or(0)];
    let layout = Packed::pack(Stored::Blocks(BlockType::Q8_0, &source), SIDE, SIDE, &mut target);
    Packed::new(layout, SharedBytes::from_vec(target), Precision::Fast)
}

/// Reads every byte, on all threads.
fn read_all(bytes: &[u8]) {
    let part = bytes.len().div_ceil(pool::threads() * 4).next_multiple_of(64);
    pool::run(bytes.len().div_ceil(part), &|task| {
        let bytes = &bytes[task * part..bytes.len().min((task + 1) * part)];
        let mut sums = [0u64; 16];
        for line in bytes.chunks_exact(128) {
            for (sum, word) in sums.iter_mut().zip(line.chunks_exact(8)) {
                *sum ^= u64::from_le_bytes(word.try_into().expect("eight bytes"));
            }
        }
        black_box(sums);
    });
}

/// Gigabytes a second of reading a file that the system has in memory, and of copying it and waiting for the disk.
fn disk(folder: &Path, bytes: &[u8], rounds: usize) -> Result<(f64, f64)> {
    let (source, copy) = (folder.join("machine-source"), folder.join("machine-copy"));
    std::fs::write(&source, bytes).with_context(|| format!("cannot write {}", source.display()))?;
    let gigabytes = bytes.len() as f64 / 1e9;
    let mut problem = None;
    let read = best(rounds, || match std::fs::read(&source) {
        Ok(read) => {
            black_box(read);
        }
        Err(error) => problem = Some(error),
    });
    let copied = best(rounds, || {
        let copy = || -> std::io::Result<()> {
            std::fs::copy(&source, &copy)?;
            std::fs::File::open(&copy)?.sync_all()
        };
        if let Err(error) = copy() {
            problem = Some(error);
        }
    });
    let _ = std::fs::remove_file(&source);
    let _ = std::fs::remove_file(&copy);
    match problem {
        Some(error) => Err(error).with_context(|| folder.display().to_string()),
        None => Ok((gigabytes / read, gigabytes / copied)),
    }
}
