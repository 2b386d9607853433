//! Compares our reading of GGUF tokenizers with llama.cpp's test vectors.
//!
//! `cargo run --release -p luthier-text --example compare_vocabs -- FOLDER [OUT [TEXTS]]`: for every `x.gguf` of the
//! folder with `x.gguf.inp` (texts) and `x.gguf.out` (ids, a line for each text) beside it, as llama.cpp's
//! `models/` folder has them, encodes the texts and counts the differences. With OUT, writes each tokenizer as
//! a Hugging Face folder there; with TEXTS, a file with a JSON string a line, their ids beside it in ids.txt.

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::Path;

use luthier_text::gguf::GgufTokenizer;

mod gguf_metadata;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("give a folder with GGUF files")?;
    let out = arguments.next();
    let texts = arguments.next().map(std::fs::read_to_string).transpose()?;
    let mut paths: Vec<_> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let metadata = gguf_metadata::read(&path)?;
        let gguf = gguf_metadata::tokenizer(&metadata);
        let begun = std::time::Instant::now();
        match compare(&path, &gguf) {
            Ok(verdict) => println!("{name}: {verdict}; {} ms", begun.elapsed().as_millis()),
            Err(error) => println!("{name}: {error}"),
        }
        let Some(out) = &out else { continue };
        let out = Path::new(out).join(name.trim_end_matches(".gguf"));
        write(&out, &gguf.to_files()?)?;
        if let Some(texts) = &texts {
            let tokenizer = gguf.to_tokenizer()?;
            let mut lines = String::new();
            for text in texts.lines() {
                let text: String = serde_json::from_str(text)?;
                let ids: Vec<String> = tokenizer.encode_prompt(&text)?.iter().map(u32::to_string).collect();
                lines.push_str(&ids.join(" "));
                lines.push('\n');
            }
            std::fs::write(out.join("ids.txt"), lines)?;
        }
    }
    Ok(())
}

fn compare(path: &Path, gguf: &GgufTokenizer) -> Result<String, Box<dyn std::error::Error>> {
    let tokenizer = gguf.to_tokenizer()?;
    let beside = |ending: &str| std::fs::read_to_string(format!("{}{ending}", path.display()));
    let (Ok(texts), Ok(ids)) = (beside(".inp"), beside(".out")) else {
        return Ok("opens, no test vectors".to_owned());
    };
    let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    let mut differing = Vec::new();
    for (index, (text, line)) in texts.iter().zip(ids.lines()).enumerate() {
        let wanted: Vec<u32> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let came = tokenizer.encode(text)?;
        if came != wanted {
            differing.push(format!("\n  {index} {text:?}\n    wanted {wanted:?}\n    came   {came:?}"));
        }
    }
    let (equal, all) = (texts.len() - differing.len(), texts.len());
    Ok(format!("{equal} of {all} equal{}", differing.concat()))
}

fn write(folder: &Path, files: &BTreeMap<String, Vec<u8>>) -> std::io::Result<()> {
    for (name, bytes) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(folder))?;
        std::fs::write(path, bytes)?;
    }
    Ok(())
}
