//! Brings bytes to the disk while more are being written, so that the last sync has little left to do.

use std::fs::File;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Bytes that are written before the next sync begins.
const STEP_BYTES: usize = 128 << 20;

/// Syncs files in a thread of its own, one at a time.
#[derive(Default)]
pub(crate) struct EarlySync {
    unsynced_bytes: usize,
    running: Option<(SyncSender<File>, JoinHandle<io::Result<()>>)>,
}

impl EarlySync {
    /// Says that so many bytes more were written to a file.
    pub(crate) fn wrote(&mut self, file: &File, len: usize) {
        self.unsynced_bytes += len;
        if self.unsynced_bytes < STEP_BYTES {
            return;
        }
        let (sender, _) = self.running.get_or_insert_with(start);
        // Where the thread is busy, or has an error to tell at the end, the bytes wait for the next step.
        if file.try_clone().is_ok_and(|file| sender.try_send(file).is_ok()) {
            self.unsynced_bytes = 0;
        }
    }

    /// Waits for the syncs that were begun; the first error of any. An error of a sync is told once and never again, so
    /// that a later sync of the same file does not stand for this one.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        match self.running.take() {
            Some((sender, thread)) => {
                drop(sender);
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
            None => Ok(()),
        }
    }
}

impl Drop for EarlySync {
    fn drop(&mut self) {
        // An output that is given up needs no sync, but its files must be closed before they are removed.
        let _ = self.finish();
    }
}

fn start() -> (SyncSender<File>, JoinHandle<io::Result<()>>) {
    let (sender, receiver) = sync_channel::<File>(1);
    let thread = std::thread::spawn(move || {
        for file in receiver {
            file.sync_data()?;
        }
        Ok(())
    });
    (sender, thread)
}
