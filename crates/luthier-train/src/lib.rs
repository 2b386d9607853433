//! luthier-train.
