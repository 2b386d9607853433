//! Tests of the architectures against what the reference computed (golden/), and against themselves.

// A test's helpers may panic as the test itself.
#![allow(clippy::unwrap_used)]

mod behaviour;
mod bert;
mod gguf;
mod golden;
mod layer_refusals;
mod refusals;
mod source;
