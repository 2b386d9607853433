//! A number of bytes as people write it, on the command line and in recipes alike.

use std::str::FromStr;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// A number of bytes, 1 at least: `80M`, `1.2G`, `1_500_000`, `512MiB`. K, M, G, T are powers of 1000, Ki, Mi, Gi, Ti of
/// 1024, with or without a B behind; fractions of a byte are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bytes(pub u64);

impl Bytes {
    const WANTED: &str = "a number of bytes, such as 80M (80,000,000), 1.2G or 512MiB";
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.replace('_', "").to_ascii_lowercase();
        let split = plain.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(plain.len());
        let (number, unit) = plain.split_at(split);
        let unit = unit.trim_start().strip_suffix('b').unwrap_or(unit.trim_start());
        let (letter, base) = match unit.strip_suffix('i') {
            Some(letter) => (letter, 1024u64),
            None => (unit, 1000),
        };
        let power = match letter {
            "" if base == 1000 => Some(0),
            "k" => Some(1),
            "m" => Some(2),
            "g" => Some(3),
            "t" => Some(4),
            _ => None,
        };
        let unit_bytes = power.map(|power| base.pow(power));
        let bytes = match number.split_once('.') {
            // Whole numbers are not rounded as fractions are.
            None => number.parse::<u64>().ok().zip(unit_bytes).and_then(|(n, unit)| n.checked_mul(unit)),
            Some(_) => number.parse::<f64>().ok().zip(unit_bytes).map(|(n, unit)| (n * unit as f64) as u64),
        };
        let bytes = bytes.filter(|&bytes| bytes > 0);
        bytes.map(Bytes).ok_or_else(|| format!("wanted {}", Self::WANTED))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Bytes;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str(Bytes::WANTED)
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Bytes, E> {
                let bytes = Some(value).filter(|&value| value > 0).map(Bytes);
                bytes.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(value), &self))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Bytes, E> {
                match u64::try_from(value) {
                    Ok(value) => self.visit_u64(value),
                    Err(_) => Err(E::invalid_value(Unexpected::Signed(value), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bytes_have_units() {
        for (text, wanted) in [
            ("80M", 80_000_000),
            ("1.2G", 1_200_000_000),
            ("1_500", 1500),
            ("512MiB", 512 << 20),
            ("2 kB", 2000),
            ("3Ki", 3072),
            ("7B", 7),
            ("0.5T", 500_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(wanted)), "{text}");
            assert_eq!(serde_json::from_value::<Bytes>(json!(text)).unwrap(), Bytes(wanted));
        }
        assert_eq!(serde_json::from_value::<Bytes>(json!(123)).unwrap(), Bytes(123));
        for wrong in
            ["", "M", "0", "0.0001k", "-5", "1e9", "1.2.3M", "5X", "5i", "99999999999999999999", "1Mb i"]
        {
            assert!(wrong.parse::<Bytes>().is_err(), "{wrong}");
        }
        assert!(serde_json::from_value::<Bytes>(json!(-1)).is_err());
    }
}
