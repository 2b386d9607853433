//! luthier-text.
