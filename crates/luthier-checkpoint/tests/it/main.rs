//! Files written and read back, and every way in which a file may lie.
// The whole binary is a test, its helpers too.
#![allow(clippy::unwrap_used)]

mod folder;
mod gguf;
mod hub;
mod output;
mod safetensors;
mod torch;
mod values;
