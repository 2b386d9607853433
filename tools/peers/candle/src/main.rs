//! `candle-decode FILE.gguf PROMPT_TOKENS NEW_TOKENS`: how fast candle's quantised Llama reads a prompt and decodes.

use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, prompt_tokens, new_tokens] = &arguments[..] else {
        anyhow::bail!("usage: candle-decode FILE.gguf PROMPT_TOKENS NEW_TOKENS")
    };
    let (prompt_tokens, new_tokens): (u32, usize) = (prompt_tokens.parse()?, new_tokens.parse()?);
    let mut reader = std::fs::File::open(file).with_context(|| format!("cannot open {file}"))?;
    let content = gguf_file::Content::read(&mut reader)?;
    let mut model = ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)?;
    // The first call is slower: it is not counted.
    read(&mut model, &[1, 2, 3], 0)?;
    let prompt: Vec<u32> = (0..prompt_tokens).map(|at| (7919 * at + 1) % 40_000).collect();
    let start = Instant::now();
    let token = read(&mut model, &prompt, 0)?;
    let prefill = f64::from(prompt_tokens) / start.elapsed().as_secs_f64();
    let after = decode(&mut model, token, prompt.len(), new_tokens)?;
    let token = read(&mut model, &[1], 0)?;
    let from_nothing = decode(&mut model, token, 1, new_tokens)?;
    println!(
        "{{\"prefill\": {prefill}, \"decode after a prompt\": {after}, \"decode from nothing\": {from_nothing}}}"
    );
    Ok(())
}

/// The likeliest token after these.
fn read(model: &mut ModelWeights, tokens: &[u32], position: usize) -> Result<u32> {
    let logits = model.forward(&Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?, position)?;
    Ok(logits.squeeze(0)?.argmax(0)?.to_scalar()?)
}

/// Tokens a second.
fn decode(model: &mut ModelWeights, mut token: u32, mut position: usize, new_tokens: usize) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..new_tokens {
        token = read(model, &[token], position)?;
        position += 1;
    }
    Ok(new_tokens as f64 / start.elapsed().as_secs_f64())
}
