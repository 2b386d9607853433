//! `cargo xtask bench machine`: the peaks of this machine, which other reports state their distance from.

use std::hint::black_box;
use std::path::Path;

use anyhow::{Context, Result};
use luthier::peaks::{best, products, read_all};
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
    let [f32_gflops, int8_gops] = products(SIDE, rounds);
    let memory = touched()?;
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

/// Gigabytes a second of reading memory that no cache holds.
pub(super) fn memory_gb_per_s(threads: usize) -> Result<f64> {
    pool::set_threads(threads);
    let memory = touched()?;
    Ok(MEMORY_BYTES as f64 / 1e9 / best(3, || read_all(memory.as_ref())))
}

/// Memory of its own: untouched pages are all one page of zeros.
fn touched() -> Result<LargePages> {
    let mut memory = LargePages::zeroed(MEMORY_BYTES)?;
    memory.as_mut().fill(1);
    Ok(memory)
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
