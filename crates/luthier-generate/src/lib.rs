//! luthier-generate.
