//! A safetensors header either is refused or describes tensors that tile the file after it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luthier_checkpoint::safetensors::Header;

fuzz_target!(|file: &[u8]| {
    if let Ok(header) = Header::parse(file) {
        let mut end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        for entry in header.entries {
            assert_eq!(entry.range.start, end);
            assert_eq!(entry.info.dtype.size_bytes(&entry.info.shape), Some(entry.range.len()));
            end = entry.range.end;
        }
        assert_eq!(end, file.len());
    }
});
