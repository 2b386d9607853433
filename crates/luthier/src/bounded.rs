//! Numbers that an option takes only within bounds, on the command line and in recipes alike.

use std::str::FromStr;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

/// A whole number of `LEAST` or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtLeast<const LEAST: usize>(pub usize);

impl<const LEAST: usize> AtLeast<LEAST> {
    fn wanted() -> String {
        format!("a whole number of {LEAST} or more")
    }
}

impl<const LEAST: usize> FromStr for AtLeast<LEAST> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|&number| number >= LEAST);
        number.map(AtLeast).ok_or_else(|| format!("wanted {}", Self::wanted()))
    }
}

impl<'de, const LEAST: usize> Deserialize<'de> for AtLeast<LEAST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole<const LEAST: usize>;
        impl<const LEAST: usize> Visitor<'_> for Whole<LEAST> {
            type Value = AtLeast<LEAST>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str(&AtLeast::<LEAST>::wanted())
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
                let number = usize::try_from(value).ok().filter(|&number| number >= LEAST);
                number.map(AtLeast).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(value), &self))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
                match u64::try_from(value) {
                    Ok(value) => self.visit_u64(value),
                    Err(_) => Err(E::invalid_value(Unexpected::Signed(value), &self)),
                }
            }

            /// `1_000`, as people write it in recipes.
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.replace('_', "").parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Whole)
    }
}

/// A value that is written as text or as a number, on the command line and in recipes alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Typed<T>(pub T);

impl<T: FromStr<Err = String>> FromStr for Typed<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Typed)
    }
}

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Typed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        text.parse().map(Typed).map_err(de::Error::custom)
    }
}

/// A number type with a check of its own.
macro_rules! bounded {
    ($(#[$doc:meta])* $name:ident, $wanted:literal, $fits:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
        #[serde(try_from = "f64")]
        pub struct $name(pub f64);

        impl TryFrom<f64> for $name {
            type Error = String;

            fn try_from(number: f64) -> Result<Self, String> {
                let fits: fn(f64) -> bool = $fits;
                if fits(number) { Ok($name(number)) } else { Err(format!("wanted {}, came {number}", $wanted)) }
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let number = text.parse::<f64>().ok().and_then(|number| $name::try_from(number).ok());
                number.ok_or_else(|| format!("wanted {}", $wanted))
            }
        }
    };
}

bounded!(
    /// 0 or more, and finite.
    NotNegative, "a number of 0 or more", |number| number >= 0.0 && number.is_finite()
);
bounded!(
    /// More than 0, and finite.
    Positive, "a number above 0", |number| number > 0.0 && number.is_finite()
);
bounded!(
    /// From 0 to 1.
    Share, "a number from 0 to 1", |number| (0.0..=1.0).contains(&number)
);

/// A number of bytes, 1 at least: `80M`, `1.2G`, `1_500_000`, `512MiB`. K, M, G, T are powers of 1000, Ki, Mi, Gi, Ti of
/// 1024, with or without a B behind; fractions of a byte are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    #[derive(Clone, Debug, PartialEq)]
    struct Even(u32);

    impl FromStr for Even {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, String> {
            text.parse().ok().filter(|number| number % 2 == 0).map(Even).ok_or_else(|| "odd".to_string())
        }
    }

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

    #[test]
    fn bounds_hold_for_text_and_for_recipes() {
        assert_eq!("2".parse(), Ok(AtLeast::<2>(2)));
        assert_eq!(serde_json::from_value::<AtLeast<2>>(json!("1_000")).unwrap(), AtLeast(1000));
        for wrong in ["1", "-3", "2.5", "", "ten", "99999999999999999999"] {
            assert!(wrong.parse::<AtLeast<2>>().is_err(), "{wrong}");
            assert!(serde_json::from_value::<AtLeast<2>>(json!(wrong)).is_err(), "{wrong}");
        }
        assert!(serde_json::from_value::<AtLeast<2>>(json!(1)).is_err());
        assert!("0".parse::<NotNegative>().is_ok() && "0".parse::<Positive>().is_err());
        for wrong in ["nan", "inf", "-0.1", "x"] {
            assert!(wrong.parse::<NotNegative>().is_err() && wrong.parse::<Share>().is_err(), "{wrong}");
        }
        assert_eq!(serde_json::from_value::<Typed<Even>>(json!(4)).unwrap(), Typed(Even(4)));
        assert_eq!(serde_json::from_value::<Typed<Even>>(json!("4")).unwrap(), "4".parse().unwrap());
        assert!(serde_json::from_value::<Typed<Even>>(json!("5")).is_err());
        assert!("1.5".parse::<Share>().is_err() && serde_json::from_value::<Share>(json!(1.5)).is_err());
    }
}
