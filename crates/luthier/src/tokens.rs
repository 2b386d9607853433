//! Token ids on the command line (`1,2,3`) and in recipes (a list, or the same text).

use serde::{Deserialize, Deserializer, de};

/// Token ids, used exactly as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIds(pub Vec<u32>);

impl std::str::FromStr for TokenIds {
    type Err = String;

    fn from_str(text: &str) -> Result<TokenIds, String> {
        let ids = text.split(',').map(|id| {
            id.trim()
                .parse()
                .map_err(|_| format!("wanted token ids such as 1,2,3; {id:?} is not a whole number"))
        });
        Ok(TokenIds(ids.collect::<Result<_, String>>()?))
    }
}

impl<'de> Deserialize<'de> for TokenIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TokenIds, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected token ids: a list, or a text such as 1,2,3")]
        enum Form {
            List(Vec<u32>),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::List(ids) => Ok(TokenIds(ids)),
            Form::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

/// Refuses ids that the model has no embedding for.
pub fn check_range(ids: &[u32], vocab_size: usize) -> anyhow::Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(id) => anyhow::bail!("token id {id}: the model's vocabulary ends at {}", vocab_size - 1),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::TokenIds;

    #[test]
    fn ids_are_taken_as_given_and_nothing_else_is() {
        assert_eq!("1, 22,3".parse(), Ok(TokenIds(vec![1, 22, 3])));
        for wrong in ["", "1,,2", "-1", "1;2", "4294967296"] {
            assert!(wrong.parse::<TokenIds>().is_err(), "{wrong}");
        }
    }
}
