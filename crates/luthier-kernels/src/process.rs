//! Settings of the whole process, made once before anything else runs.

use std::ffi::{c_int, c_long};

// Links the allocator, whose option is set below.
use mimalloc as _;

unsafe extern "C" {
    fn mi_option_set(option: c_int, value: c_long);
    fn mi_collect(force: bool);
}

#[cfg(unix)]
unsafe extern "C" {
    fn signal(number: c_int, handler: usize) -> usize;
}

/// Sent where a file grows beyond the limit that the shell sets (`ulimit -f`).
#[cfg(unix)]
const SIGXFSZ: c_int = 25;

/// The handler that ignores.
#[cfg(unix)]
const SIG_IGN: usize = 1;

/// `mi_option_purge_delay` of mimalloc 2 and 3.
const PURGE_DELAY: c_int = 15;

/// How long freed memory waits for its next use: longer than a layer takes, whose memory the next one takes again (measured:
/// prompts are read a tenth faster than with mimalloc's 10 ms, at the same peak).
const PURGE_DELAY_MS: c_long = 500;

/// Makes mimalloc keep freed memory from now on, for training: a step frees and takes some gigabytes, and memory that goes
/// back to the system in between costs a page fault for each 4 KiB when it is taken again (measured: some thousands a step
/// with mimalloc's defaults, none so).
pub fn keep_freed_memory() {
    // SAFETY: a store inside mimalloc, which reads it atomically.
    unsafe { mi_option_set(PURGE_DELAY, -1) };
}

/// Bytes of memory that the process holds, mapped file pages included, where the system tells (`VmRSS` of /proc/self/status).
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Gives freed memory back to the system at once, before much is taken for something else.
pub fn give_back_freed_memory() {
    // SAFETY: collects what this thread has freed; nothing points there.
    unsafe { mi_collect(true) };
}

/// Makes candle compute on the calling thread: it has a pool of its own for long elementwise operations, whose workers spin
/// beside ours, and the threads that a person asked for would be twice as many.
///
/// To be the first call of `main`, since it changes the environment, which other threads must not read meanwhile.
pub fn prepare() {
    // SAFETY: a store inside mimalloc, a signal of the C library ignored, and by this function's rule there is no other thread
    // yet.
    unsafe {
        mi_option_set(PURGE_DELAY, PURGE_DELAY_MS);
        std::env::set_var("CANDLE_NUM_THREADS", "1");
        // The write then fails like one on a full disk, and is cleaned up after.
        #[cfg(unix)]
        signal(SIGXFSZ, SIG_IGN);
    }
}
