//! A lineage either is refused or is written back as something that reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luthier_checkpoint::Lineage;

fuzz_target!(|text: &[u8]| {
    if let Ok(lineage) = Lineage::parse(text) {
        assert_eq!(Lineage::parse(lineage.to_text().as_bytes()).as_ref(), Ok(&lineage));
    }
});
