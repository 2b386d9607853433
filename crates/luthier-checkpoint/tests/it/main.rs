//! Files written and read back, and every way in which a file may lie.

mod folder;
mod gguf;
mod output;
mod safetensors;
mod values;
