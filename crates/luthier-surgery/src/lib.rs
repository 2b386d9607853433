//! luthier-surgery.
