//! Tests of the architectures against what the reference computed (golden/), and against themselves.

mod golden;
mod source;
