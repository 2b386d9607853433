//! Trains the small tokenizer of the built-in model.
//!
//! `cargo run --release -p luthier-text --example train_tokenizer -- OUT PIECES FILE...`: writes tokenizer.json,
//! tokenizer_config.json and special_tokens_map.json into the folder OUT.

use luthier_text::corpus::{Source, read_all};
use luthier_text::train_bpe::{BpeTraining, train_bpe};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [out, pieces, files @ ..] = arguments.as_slice() else {
        return Err("give OUT PIECES FILE...".into());
    };
    let sources: Vec<Source> = files.iter().map(|file| Source::File(file.into())).collect();
    let documents = read_all(&sources)?;
    let texts: Vec<&str> = documents.iter().map(String::as_str).collect();
    let files = train_bpe(&texts, &BpeTraining::gemma_like(pieces.parse()?))?;
    std::fs::create_dir_all(out)?;
    for (name, bytes) in files {
        std::fs::write(std::path::Path::new(out).join(name), bytes)?;
    }
    Ok(())
}
