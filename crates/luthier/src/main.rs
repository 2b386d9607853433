//! The luthier program.
fn main() {}
