//! A GGUF header either is refused or describes tensors that lie inside the file and do not overlap.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luthier_checkpoint::gguf::Header;

fuzz_target!(|file: &[u8]| {
    if let Ok(header) = Header::parse(file) {
        let mut ranges: Vec<_> =
            header.entries.into_iter().map(|(_, range)| range).filter(|range| !range.is_empty()).collect();
        ranges.sort_by_key(|range| range.start);
        assert!(ranges.iter().all(|range| range.end <= file.len()));
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
});
