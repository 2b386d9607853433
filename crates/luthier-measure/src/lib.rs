//! luthier-measure.
