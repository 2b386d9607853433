//! Integration tests of the training loop on tiny models of real architectures.

mod curves;
mod gradients;
mod refusals;
mod resume;
mod support;
