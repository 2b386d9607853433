//! The program's parts, for itself, its tests and the generated docs. The only crate that reads the command line and
//! the environment and prints.

pub mod bounded;
pub mod builtin;
pub mod divergence;
pub mod dtype;
pub mod fingerprint;
pub mod grid;
pub mod kept_prompt;
pub mod pages;
pub mod peaks;
pub mod places;
pub mod program;
pub mod progress;
pub mod recipe;
pub mod record;
pub mod session;
pub mod study;
pub mod texts;
pub mod tokens;
pub mod training;
pub mod verbs;
