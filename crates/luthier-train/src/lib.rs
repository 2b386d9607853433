//! Training: objectives, optimizers, schedules, and the loop that is killed and resumed without a trace.

pub mod adapter;
pub mod batch;
pub mod bench;
mod checkpoint;
mod corpus;
mod count;
pub mod error;
pub mod identity;
pub mod initial_state;
mod inputs;
pub mod masters;
pub mod memory;
pub mod metrics;
mod model_folder;
pub mod objectives;
pub mod optimizers;
pub mod parameters;
pub mod progress;
pub mod random;
pub mod recipe;
pub mod run;
mod run_folder;
pub mod schedules;
mod source_texts;
pub mod step;
pub mod teacher;
pub mod tensorboard;
mod text_file;
pub mod trainer;
pub mod validation;
pub mod windows;

pub use bench::{StepTimes, bench_step};
pub use error::{Error, Result};
pub use recipe::Recipe;
pub use run::{Opened, Outcome, Purpose, TrainEnv, run};
pub use text_file::{read_text_file, refuse_device};
