//! A file of torch.save either is refused or describes tensors that lie inside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luthier_checkpoint::torch::Header;

fuzz_target!(|file: &[u8]| {
    if let Ok(header) = Header::parse(file) {
        for entry in header.entries {
            assert!(entry.range.start <= entry.range.end && entry.range.end <= file.len());
            assert!(entry.strides.is_some() || entry.range.len() == entry.size_bytes());
        }
    }
});
