//! Prompts that were read before: the same continuation with and without, and files that are damaged or not ours.

use std::ops::ControlFlow;

use luthier_generate::generate::PREFILL_CHUNK_TOKENS;
use luthier_generate::{
    Aids, CacheType, Found, GenerateOptions, PromptMemory, PromptOwner, PromptState, generate, generate_with,
    read_prompt, write_prompt,
};
use proptest::prelude::*;

use crate::tiny::Tiny;

fn options(kind: CacheType) -> GenerateOptions {
    GenerateOptions { max_new_tokens: 6, kv_cache: Some(kind), ..GenerateOptions::default() }
}

fn prompt(length: usize, last: u32) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..length as u32).map(|i| (i * i + 3) % 47).collect();
    ids[length - 1] = last;
    ids
}

fn remembered(model: &Tiny, prompt: &[u32], kind: CacheType, memory: &mut PromptMemory) -> Vec<u32> {
    let aids = Aids { drafts: None, memory: Some(memory) };
    let mut go_on = |_| ControlFlow::Continue(());
    generate_with(model, prompt, None, &options(kind), aids, &mut go_on).unwrap().token_ids
}

#[test]
fn continuations_are_the_same_with_a_memory() {
    let chunk = PREFILL_CHUNK_TOKENS;
    let model = Tiny::new(5, 50, 3 * chunk, false);
    for kind in CacheType::ALL {
        let mut memory = PromptMemory::default();
        let long = 2 * chunk + 7;
        // New; the same; a longer one with another end; its own beginning; another type of cache.
        let cases = [
            (long, 1, 0),
            (long, 1, long),
            (long + 9, 2, 2 * chunk),
            (long + 9, 3, 2 * chunk),
            (chunk, 3, 0),
        ];
        for (length, last, reused) in cases {
            let prompt = prompt(length, last);
            let mut go_on = |_| ControlFlow::Continue(());
            let wanted = generate(&model, &prompt, None, &options(kind), &mut go_on).unwrap().token_ids;
            assert_eq!(remembered(&model, &prompt, kind, &mut memory), wanted, "{kind:?} {length}");
            assert_eq!(memory.reused_tokens, reused, "{kind:?} {length}");
        }
        let other = CacheType::ALL[(kind as usize + 1) % 3];
        remembered(&model, &prompt(chunk, 3), other, &mut memory);
        assert_eq!(memory.reused_tokens, 0);
    }
    let model = Tiny::new(5, 50, 64, true);
    let aids = Aids { drafts: None, memory: Some(&mut PromptMemory::default()) };
    let mut go_on = |_| ControlFlow::Continue(());
    let refused = generate_with(&model, &[1, 2], None, &options(CacheType::F32), aids, &mut go_on);
    assert!(refused.unwrap_err().to_string().contains("prompt_cache"));
}

fn owner(kind: CacheType) -> PromptOwner {
    PromptOwner { model_sha256: "ab".to_string(), computed_by: "test".to_string(), kind }
}

fn state(kind: CacheType) -> PromptState {
    let mut memory = PromptMemory::default();
    remembered(&Tiny::new(5, 50, 64, false), &prompt(9, 1), kind, &mut memory);
    memory.state.unwrap()
}

#[test]
fn a_file_gives_back_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    for kind in CacheType::ALL {
        let (path, state) = (folder.path().join("prompt"), state(kind));
        write_prompt(&path, &owner(kind), &state).unwrap();
        assert_eq!(read_prompt(&path, &owner(kind)).unwrap(), Found::State(state));
        let other = PromptOwner { model_sha256: "cd".to_string(), ..owner(kind) };
        assert!(read_prompt(&path, &other).unwrap_err().to_string().contains("another model"));
        let other = PromptOwner { computed_by: "else".to_string(), ..owner(kind) };
        let Found::Useless(why) = read_prompt(&path, &other).unwrap() else { panic!("of use") };
        assert!(why.contains("computed_by"), "{why}");
    }
    assert_eq!(read_prompt(&folder.path().join("none"), &owner(CacheType::F32)).unwrap(), Found::Nothing);
    let path = folder.path().join("model.gguf");
    for bytes in [&b""[..], b"GGUF and much more that is no prompt cache", &[0; 200]] {
        std::fs::write(&path, bytes).unwrap();
        assert!(
            read_prompt(&path, &owner(CacheType::F32)).unwrap_err().to_string().contains("no prompt cache")
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]
    #[test]
    fn damage_is_never_taken_for_a_state(
        kind in 0usize..3, at in 0.0f64..1.0, in_header: bool, flipped in 1u8..=255, cut: bool, more in 0usize..3,
    ) {
        let (kind, folder) = (CacheType::ALL[kind], tempfile::tempdir().unwrap());
        let (path, state) = (folder.path().join("prompt"), state(kind));
        write_prompt(&path, &owner(kind), &state).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let reach = if in_header { 1200.min(bytes.len()) } else { bytes.len() };
        let place = (at * reach as f64) as usize;
        if cut {
            bytes.truncate(place);
        } else {
            bytes[place] ^= flipped;
            bytes.extend(std::iter::repeat_n(0, more));
        }
        std::fs::write(&path, bytes).unwrap();
        // A header may say the same in another way.
        if let Ok(Found::State(read)) = read_prompt(&path, &owner(kind)) {
            prop_assert_eq!(read, state);
        }
    }
}
