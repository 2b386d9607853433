//! Recipes: YAML read into a verb's own struct, unknown keys refused with the nearest known one.

use std::path::Path;

use anyhow::{Context, anyhow};
use serde::de::DeserializeOwned;

/// Reads a recipe file.
pub fn from_file<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let bytes = std::fs::read(path).with_context(|| format!("recipe {}", path.display()))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow!("recipe {}: not UTF-8 from byte {at} on", path.display())
    })?;
    from_yaml(&text).with_context(|| format!("recipe {}", path.display()))
}

/// Reads a recipe's text.
pub fn from_yaml<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    serde_saphyr::from_str(text).map_err(|error| anyhow!("{}", with_nearest_key(&error.to_string())))
}

/// Reads the keys of one step of a chain.
pub fn from_value<T: DeserializeOwned>(keys: serde_json::Value) -> anyhow::Result<T> {
    serde_json::from_value(keys).map_err(|error| anyhow!("{}", with_nearest_key(&error.to_string())))
}

/// The parsers say "unknown field `x`, expected one of a, b"; this adds which of them was probably meant.
fn with_nearest_key(message: &str) -> String {
    let Some(rest) = message.split("unknown field `").nth(1) else { return message.to_string() };
    let Some((unknown, rest)) = rest.split_once('`') else { return message.to_string() };
    let wanted = rest.lines().next().unwrap_or("").trim_start_matches(", expected ");
    let wanted = wanted.trim_start_matches("one of ").replace(" or ", ", ");
    let nearest = wanted
        .split(", ")
        .map(|key| key.trim().trim_matches('`'))
        .filter(|key| !key.is_empty())
        .max_by(|a, b| strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b)));
    match nearest {
        Some(nearest) => format!("{message}\nunknown key {unknown}: did you mean {nearest}?"),
        None => message.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Small {
        steps: Option<u64>,
        seed: u64,
        lr_peak: f64,
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let error = super::from_yaml::<Small>("seed: 1\nlr_peak: 1\nstpes: 3\n").unwrap_err().to_string();
        assert!(error.contains("did you mean steps?"), "{error}");
    }

    #[test]
    fn numbers_may_carry_underscores_and_exponents() {
        let small: Small = super::from_yaml("seed: 1\nlr_peak: 3.0e-4\nsteps: 1_000_000\n").unwrap();
        assert_eq!(small.steps, Some(1_000_000));
        assert!((small.lr_peak - 3.0e-4).abs() < 1e-12);
    }
}
