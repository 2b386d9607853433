//! The process's peak memory, as the system counts it.

use std::path::Path;

use crate::{Error, Result};

/// Where Linux tells it.
const STATUS: &str = "/proc/self/status";

/// Peak resident size in bytes since the process started: `VmHWM` of /proc/self/status, mapped file pages included.
///
/// # Errors
/// A system that does not tell.
pub fn peak_rss_bytes() -> Result<u64> {
    let path = Path::new(STATUS);
    let status =
        std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    peak_of(&status).ok_or_else(|| Error::Io {
        path: path.to_path_buf(),
        source: std::io::Error::other("no VmHWM line; peak memory is known on Linux only"),
    })
}

fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_line_in_kib() {
        assert_eq!(peak_of("Name:\tx\nVmHWM:\t    1234 kB\nVmRSS:\t 5 kB\n"), Some(1234 * 1024));
        assert_eq!(peak_of("VmRSS:\t 5 kB\n"), None);
    }

    #[test]
    fn grows_with_what_was_touched() {
        let before = peak_rss_bytes().unwrap();
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(peak_rss_bytes().unwrap() >= before.max(touched.len() as u64));
    }
}
