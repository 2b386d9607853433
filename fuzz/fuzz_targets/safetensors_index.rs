//! An index either is refused or names shards beside it only.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luthier_checkpoint::safetensors::Index;

fuzz_target!(|json: &[u8]| {
    if let Ok(index) = Index::parse(json) {
        assert!(!index.shards().is_empty());
        assert!(index.shards().iter().all(|shard| !shard.contains('/')));
    }
});
