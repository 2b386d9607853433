//! Prompts kept on disk and caches in fewer bits, as a person uses them.

use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::{json, luthier, refusal};

fn generate(at: &Path, more: &[&str]) -> Value {
    json(at, &[&["generate", "builtin", "--max-new-tokens", "12", "--ignore-eos"], more].concat())
}

fn ids(count: usize, last: usize) -> String {
    let ids: Vec<String> = (0..count).map(|at| ((at * 37 + 11) % 4000).to_string()).collect();
    format!("{},{last}", ids.join(","))
}

#[test]
fn a_kept_prompt_changes_nothing_but_the_time() {
    let at = tempdir().unwrap();
    let cache = ["--prompt-cache", "prompt.cache"];
    for (tokens, reused) in [(ids(200, 1), 0), (ids(200, 1), 201), (ids(210, 2), 192), (ids(99, 5), 96)] {
        let prompt = ["--tokens", &tokens, "--kv-cache", "q8"];
        let plain = generate(at.path(), &prompt);
        let kept = generate(at.path(), &[&prompt[..], &cache].concat());
        assert_eq!(kept["token_ids"], plain["token_ids"]);
        assert_eq!(kept["reused_prompt_tokens"], reused);
    }
    // Nothing is left beside it.
    assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 1);
}

#[test]
fn prompts_of_other_models_are_refused_and_damaged_ones_made_again() {
    let at = tempdir().unwrap();
    let tokens = ids(100, 1);
    let prompt = ["--tokens", &tokens, "--prompt-cache", "prompt.cache"];
    generate(at.path(), &prompt);
    let file = at.path().join("prompt.cache");
    let whole = std::fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() - 3] ^= 1;
    for bytes in [&damaged, &whole[..whole.len() / 2]] {
        std::fs::write(&file, bytes).unwrap();
        let output = luthier(
            at.path(),
            &[&["generate", "builtin", "--json", "--max-new-tokens", "1"], &prompt[..]].concat(),
        );
        let said = String::from_utf8_lossy(&output.stderr).to_string();
        assert!(output.status.success() && said.contains("is damaged"), "{said}");
        assert_eq!(std::fs::read(&file).unwrap(), whole);
    }
    // Another type of cache, too.
    assert_eq!(
        generate(at.path(), &[&prompt[..], &["--kv-cache", "q8"]].concat())["reused_prompt_tokens"],
        0
    );
    json(at.path(), &["quantize", "builtin", "small.gguf", "--to", "Q8_0"]);
    let said = refusal(at.path(), &[&["generate", "small.gguf"], &prompt[..]].concat());
    assert!(said.contains("another model") && said.contains("prompt.cache"), "{said}");
    let said =
        refusal(at.path(), &["generate", "builtin", "--tokens", "1,2", "--prompt-cache", "small.gguf"]);
    assert!(said.contains("no prompt cache"), "{said}");
}

#[test]
fn narrow_caches_keep_the_text() {
    let at = tempdir().unwrap();
    let prompt = ["--prompt", "It is a truth universally acknowledged, that a single man"];
    let run = |kind: &str| generate(at.path(), &[&prompt[..], &["--kv-cache", kind]].concat());
    assert_eq!(run("f32")["token_ids"], generate(at.path(), &prompt)["token_ids"]);
    assert_eq!(run("f16")["token_ids"], run("f32")["token_ids"]);
    assert_eq!(run("q8")["token_ids"], run("f32")["token_ids"]);
    let wrong = luthier(at.path(), &["generate", "builtin", "--prompt", "It", "--kv-cache", "q4"]);
    assert_eq!(wrong.status.code(), Some(2));
}
