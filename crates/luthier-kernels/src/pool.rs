//! The one thread pool: exactly as many workers as asked for, work split by index.
