//! Whole numbers of a recipe: `1000`, or `1_000` as people write them.

use std::fmt;

use serde::Deserializer;
use serde::de::{Error, Visitor};

/// A number that must stand there.
pub(crate) fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(Count)
}

/// A number that may be left out.
pub(crate) fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    required(deserializer).map(Some)
}

struct Count;

impl Visitor<'_> for Count {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a whole number of 0 or more, like 1000 or 1_000")
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<u64, E> {
        Ok(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<u64, E> {
        u64::try_from(value).map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(value), &self))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<u64, E> {
        // 1e6 is a whole number too; above 2^53 a float no longer says which.
        if value.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&value) {
            return Ok(value as u64);
        }
        Err(E::invalid_value(serde::de::Unexpected::Float(value), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        let well_formed =
            text.split('_').all(|group| !group.is_empty() && group.bytes().all(|b| b.is_ascii_digit()));
        let digits = text.replace('_', "");
        match (well_formed, digits.parse()) {
            (true, Ok(value)) => Ok(value),
            _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
        }
    }
}
