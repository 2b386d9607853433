//! `adapter_config.json`: what it says of LoRA, and which of its options are refused because they add something else.

use serde_json::{Map, Value};

/// Which biases an adapter trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// None.
    None,
    /// All of the model.
    All,
    /// Those of the modules that it adapts.
    LoraOnly,
}

/// The parts of a config that decide what an adapter adds.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// `r`.
    pub rank: usize,
    /// `lora_alpha`.
    pub alpha: f64,
    /// `use_rslora`: the scale is alpha / sqrt(r).
    pub use_rslora: bool,
    /// `use_dora`.
    pub use_dora: bool,
    /// `fan_in_fan_out`: weights are stored `[in, out]`.
    pub fan_in_fan_out: bool,
    /// `bias`.
    pub bias: Bias,
    /// `rank_pattern`: other ranks, by the end of a module's path, a regular expression.
    pub rank_pattern: Vec<(String, usize)>,
    /// `alpha_pattern`, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// `base_model_name_or_path`.
    pub base_model: Option<String>,
    /// The whole file.
    pub keys: Map<String, Value>,
}

/// Keys that say how an adapter is trained or began, which its weights show by themselves.
const WITHOUT_EFFECT: &[&str] = &[
    "arrow_config",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "lora_ga_config",
    "loftq_config",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "lora_bias",
];

/// Keys that are read.
const READ: &[&str] = &[
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "bias",
    "rank_pattern",
    "alpha_pattern",
    "init_lora_weights",
];

/// Keys whose options add something else than a product of two matrices.
const REFUSED: &[&str] = &[
    "alora_invocation_tokens",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// Ways to begin that change the base's weights too: the adapter then belongs to weights that nobody has.
const CHANGE_THE_BASE: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

impl AdapterConfig {
    /// The config, and notes on keys that are not known. The error says what is wrong; the caller adds the file's name.
    pub(super) fn parse(keys: &Map<String, Value>) -> Result<(AdapterConfig, Vec<String>), String> {
        match keys.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            came => return Err(format!("peft_type: wanted LORA, came {}", came.unwrap_or("none"))),
        }
        if let Some(key) = REFUSED.iter().find(|key| keys.get(**key).is_some_and(is_set)) {
            return Err(format!(
                "{key} is {}; adapters with this option are not read, remove them or train without",
                keys[*key]
            ));
        }
        if let Some(Value::String(way)) = keys.get("init_lora_weights")
            && CHANGE_THE_BASE.iter().any(|known| way.starts_with(known))
        {
            return Err(format!(
                "init_lora_weights is {way}, which changes the base model too; save the adapter with \
                 path_initial_model_for_weight_conversion first"
            ));
        }
        let is_known =
            |key: &String| [WITHOUT_EFFECT, READ, REFUSED].iter().any(|list| list.contains(&key.as_str()));
        let unknown = keys.iter().filter(|(key, value)| !is_known(key) && is_set(value));
        let notes = unknown.map(|(key, value)| {
            format!("adapter_config.json: {key} ({value}) is not known and has no effect")
        });
        let notes = notes.collect();
        let flag = |key: &str| match keys.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(format!("{key}: wanted true or false, came {other}")),
        };
        let bias = match keys.get("bias").and_then(Value::as_str) {
            None | Some("none") => Bias::None,
            Some("all") => Bias::All,
            Some("lora_only") => Bias::LoraOnly,
            Some(other) => return Err(format!("bias: wanted none, all or lora_only, came {other}")),
        };
        let rank = |value: &Value| value.as_u64().map(|rank| rank as usize).filter(|rank| *rank > 0);
        let config = AdapterConfig {
            rank: one(keys, "r", "a whole number above 0", rank)?,
            alpha: one(keys, "lora_alpha", "a number", Value::as_f64)?,
            use_rslora: flag("use_rslora")?,
            use_dora: flag("use_dora")?,
            fan_in_fan_out: flag("fan_in_fan_out")?,
            bias,
            rank_pattern: pattern(keys, "rank_pattern", rank)?,
            alpha_pattern: pattern(keys, "alpha_pattern", Value::as_f64)?,
            base_model: keys.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_string),
            keys: keys.clone(),
        };
        Ok((config, notes))
    }

    /// r of the module at `path`, and what its product is multiplied with.
    pub fn rank_and_scale(&self, path: &str) -> (usize, f64) {
        let rank = found(&self.rank_pattern, path).copied().unwrap_or(self.rank);
        let alpha = found(&self.alpha_pattern, path).copied().unwrap_or(self.alpha);
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        (rank, alpha / divisor)
    }
}

/// Whether a value asks for something.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(keys) => !keys.is_empty(),
        _ => true,
    }
}

fn one<T>(
    keys: &Map<String, Value>,
    key: &str,
    wanted: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<T, String> {
    let came = keys.get(key).unwrap_or(&Value::Null);
    read(came).ok_or_else(|| format!("{key}: wanted {wanted}, came {came}"))
}

fn pattern<T>(
    keys: &Map<String, Value>,
    key: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(String, T)>, String> {
    let entries = match keys.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(format!("{key}: wanted an object, came {other}")),
    };
    let entry = |(module, value): (&String, &Value)| {
        if fancy_regex::Regex::new(&anchored(module)).is_err() {
            return Err(format!("{key}: {module:?} is no regular expression"));
        }
        let value =
            read(value).ok_or_else(|| format!("{key}: {module:?}: wanted a number above 0, came {value}"));
        Ok((module.clone(), value?))
    };
    entries.iter().map(entry).collect()
}

/// The first entry that fits the end of a path, as PEFT matches them.
fn found<'p, T>(pattern: &'p [(String, T)], path: &str) -> Option<&'p T> {
    let fits = |module: &str| {
        fancy_regex::Regex::new(&anchored(module)).is_ok_and(|regex| regex.is_match(path).unwrap_or(false))
    };
    pattern.iter().find(|(module, _)| fits(module)).map(|(_, value)| value)
}

fn anchored(module: &str) -> String {
    format!(r"^(.*\.)?({module})$")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Result<(AdapterConfig, Vec<String>), String> {
        AdapterConfig::parse(value.as_object().unwrap())
    }

    #[test]
    fn ranks_and_scales_follow_patterns() {
        let (config, notes) = parse(json!({
            "peft_type": "LORA", "r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 4, r"layers\.1\..*": 2},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 3}, "strange": 1
        }))
        .unwrap();
        assert_eq!(config.rank_and_scale("model.layers.0.self_attn.q_proj"), (4, 0.75));
        assert_eq!(config.rank_and_scale("model.layers.1.mlp.up_proj"), (2, 8.0));
        assert_eq!(config.rank_and_scale("model.layers.0.mlp.up_proj"), (8, 2.0));
        assert_eq!(config.rank_and_scale("model.layers.0.mlp.my_q_proj"), (8, 2.0));
        assert!(notes[0].contains("strange"));
        let (config, _) =
            parse(json!({"peft_type": "LORA", "r": 4, "lora_alpha": 2, "use_rslora": true})).unwrap();
        assert_eq!(config.rank_and_scale("x"), (4, 1.0));
    }

    #[test]
    fn what_is_not_lora_is_refused() {
        let check = |more: Value, wanted: &str| {
            let mut keys =
                json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16}).as_object().unwrap().clone();
            keys.extend(more.as_object().unwrap().clone());
            let came = AdapterConfig::parse(&keys).unwrap_err();
            assert!(came.contains(wanted), "wanted {wanted:?}, came {came:?}");
        };
        check(json!({"peft_type": "IA3"}), "wanted LORA, came IA3");
        check(json!({"r": 0}), "r: wanted a whole number above 0");
        check(json!({"bias": "some"}), "bias: wanted none, all or lora_only");
        check(json!({"use_dora": "yes"}), "use_dora: wanted true or false");
        check(json!({"target_parameters": ["x"]}), "target_parameters");
        check(json!({"layer_replication": [[0, 2]]}), "layer_replication");
        check(json!({"init_lora_weights": "pissa_niter_4"}), "changes the base model too");
        check(json!({"rank_pattern": {"(": 1}}), "no regular expression");
    }
}
