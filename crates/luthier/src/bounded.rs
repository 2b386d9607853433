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
