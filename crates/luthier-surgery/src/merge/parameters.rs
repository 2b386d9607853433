//! What a parameter is for one tensor: scopes in mergekit's order, filters, and lists interpolated over the layers.

use serde_json::Value;

use super::recipe::Parameters;
use crate::{Error, Result};

/// What values a parameter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Number,
    Whole,
    Flag,
}

/// A parameter of a method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Whether each input has its own.
    pub(crate) per_input: bool,
    /// NaN stands for a value that may be absent; none: it must be given.
    pub(crate) default: Option<f64>,
}

/// The value for the tensor `tensor`, `depth` (0 to 1) of the way through its slice. `scopes` from the strongest on.
pub(crate) fn resolve(
    parameter: &Parameter,
    scopes: &[Option<&Parameters>],
    tensor: &str,
    depth: f64,
) -> Result<f64> {
    for scope in scopes.iter().flatten() {
        if let Some(setting) = scope.get(parameter.name)
            && let Some(value) = evaluate(parameter, setting, tensor, depth)?
        {
            return Ok(value);
        }
    }
    parameter.default.ok_or_else(|| {
        let name = parameter.name;
        Error::Use(format!(
            "parameter {name} is missing for tensor {tensor}; give it under the model's parameters, or under parameters"
        ))
    })
}

/// None where no filter fits, or the list is empty.
fn evaluate(parameter: &Parameter, setting: &Value, tensor: &str, depth: f64) -> Result<Option<f64>> {
    match setting {
        Value::Object(_) => conditional(parameter, std::slice::from_ref(setting), tensor, depth),
        Value::Array(items) if items.is_empty() => Ok(None),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            conditional(parameter, items, tensor, depth)
        }
        Value::Array(items) => {
            let values = items.iter().map(|item| scalar(parameter, item)).collect::<Result<Vec<f64>>>()?;
            let last = values.len() - 1;
            let scaled = depth * last as f64;
            if parameter.kind == Kind::Flag {
                return Ok(Some(values[(scaled as usize).min(last)]));
            }
            let low = (scaled as usize).min(last);
            let share = scaled - low as f64;
            let value = (1.0 - share) * values[low] + share * values[(low + 1).min(last)];
            checked(parameter, value).map(Some)
        }
        single => scalar(parameter, single).map(Some),
    }
}

/// The first entry whose filter is part of the tensor's name.
fn conditional(parameter: &Parameter, items: &[Value], tensor: &str, depth: f64) -> Result<Option<f64>> {
    for item in items {
        let wrong = |what: &str| Error::Use(format!("parameter {}: {what}", parameter.name));
        let Some(keys) = item.as_object() else {
            return Err(wrong("wanted {filter, value} in every entry of the list, or in none"));
        };
        if let Some(key) = keys.keys().find(|key| !["filter", "value"].contains(&key.as_str())) {
            return Err(wrong(&format!("unknown key {key}; wanted filter and value")));
        }
        let value = keys.get("value").ok_or_else(|| wrong("an entry without value"))?;
        let fits = match keys.get("filter") {
            None | Some(Value::Null) => true,
            Some(Value::String(filter)) => filter == "*" || tensor.contains(filter.as_str()),
            Some(other) => {
                return Err(wrong(&format!("filter: wanted a part of a tensor's name, came {other}")));
            }
        };
        if fits {
            return evaluate(parameter, value, tensor, depth);
        }
    }
    Ok(None)
}

fn scalar(parameter: &Parameter, value: &Value) -> Result<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" | "t" if parameter.kind == Kind::Flag => Some(1.0),
            "false" | "no" | "off" | "n" | "f" if parameter.kind == Kind::Flag => Some(0.0),
            text => text.parse().ok(),
        },
        _ => None,
    };
    let number = number.filter(|number| number.is_finite());
    let wanted = match parameter.kind {
        Kind::Number => "a number",
        Kind::Whole => "a whole number",
        Kind::Flag => "true or false",
    };
    let wrong = || Error::Use(format!("parameter {}: wanted {wanted}, came {value}", parameter.name));
    let number = number.ok_or_else(wrong)?;
    checked(parameter, number).map_err(|_| wrong())
}

fn checked(parameter: &Parameter, number: f64) -> Result<f64> {
    let fits = match parameter.kind {
        Kind::Number => true,
        Kind::Whole => number.fract().abs() < f64::EPSILON,
        Kind::Flag => number.abs() < f64::EPSILON || (number - 1.0).abs() < f64::EPSILON,
    };
    if fits {
        return Ok(number);
    }
    Err(Error::Use(format!("parameter {}: wanted a whole number, came {number}", parameter.name)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const WEIGHT: Parameter =
        Parameter { name: "weight", kind: Kind::Number, per_input: true, default: None };

    fn value(setting: Value, tensor: &str, depth: f64) -> Option<f64> {
        evaluate(&WEIGHT, &setting, tensor, depth).unwrap()
    }

    #[test]
    fn lists_are_interpolated_and_filters_choose() {
        assert_eq!(value(json!([0, 1, 0.5]), "x", 0.25), Some(0.5));
        assert_eq!(value(json!([0, 1, 0.5]), "x", 1.0), Some(0.5));
        assert_eq!(value(json!("1e-3"), "x", 0.0), Some(1e-3));
        let filters = json!([{"filter": "mlp", "value": [0, 1]}, {"filter": "norm", "value": 3}]);
        assert_eq!(value(filters.clone(), "layers.1.mlp.up", 0.5), Some(0.5));
        assert_eq!(value(filters.clone(), "layers.1.norm", 0.5), Some(3.0));
        assert_eq!(value(filters, "layers.1.attn", 0.5), None);
        assert_eq!(value(json!([]), "x", 0.0), None);
        assert!(evaluate(&WEIGHT, &json!("often"), "x", 0.0).is_err());
        assert!(evaluate(&WEIGHT, &json!([{"fliter": "a", "value": 1}]), "x", 0.0).is_err());
    }

    #[test]
    fn the_strongest_scope_that_has_a_value_wins() {
        let strong = json!({"weight": [{"filter": "mlp", "value": 2}]}).as_object().unwrap().clone();
        let weak = json!({"weight": 5}).as_object().unwrap().clone();
        let scopes = [Some(&strong), None, Some(&weak)];
        assert!((resolve(&WEIGHT, &scopes, "a.mlp", 0.0).unwrap() - 2.0).abs() < 1e-12);
        assert!((resolve(&WEIGHT, &scopes, "a.attn", 0.0).unwrap() - 5.0).abs() < 1e-12);
        assert!(resolve(&WEIGHT, &[None], "a", 0.0).unwrap_err().to_string().contains("weight is missing"));
    }
}
