//! sentence-transformers' `Dense`: a linear step on a pooled state, activation(W x + b), with W [out, in].

use serde_json::Value;

use super::{broken, parsed};
use crate::safetensors::Header;
use crate::{Result, SideFile, values};

/// What the sums go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// The hyperbolic tangent.
    Tanh,
}

/// One such step.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    /// The folder that it stands in, for messages.
    pub place: String,
    /// Values that it reads.
    pub inputs: usize,
    /// Rows of `inputs` values, one for each value that it gives.
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    activation: Activation,
}

impl Dense {
    /// Of the folder `place` among a model's small files.
    pub(super) fn read(files: &[SideFile], place: &str) -> Result<Dense> {
        let name = format!("{place}/config.json");
        let missing = |name: &str| broken(name, format!("is missing, but {} names it", super::MODULES));
        let config = parsed(files, &name)?.ok_or_else(|| missing(&name))?;
        let size = |key: &str| {
            let value = config.get(key).and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
            value
                .filter(|size| *size > 0)
                .ok_or_else(|| broken(&name, format!("{key}: wanted a number of values")))
        };
        let (inputs, outputs) = (size("in_features")?, size("out_features")?);
        let function = config.get("activation_function").and_then(Value::as_str).unwrap_or_default();
        let activation = match function.rsplit('.').next() {
            Some("Identity") => Activation::Identity,
            // Its absence means what the module's constructor takes then.
            Some("Tanh" | "") => Activation::Tanh,
            _ => {
                let what = format!("activation_function {function:?} is not known; wanted Identity or Tanh");
                return Err(broken(&name, what));
            }
        };
        let weights = format!("{place}/model.safetensors");
        let file = files.iter().find(|file| file.name == weights).ok_or_else(|| {
            broken(&weights, "is missing; wanted the module's weights as safetensors (a pytorch_model.bin is not read here)")
        })?;
        let header = Header::parse(&file.bytes).map_err(|what| broken(&weights, what))?;
        let tensor = |name: &str, shape: &[usize]| {
            let entry = header.entries.iter().find(|entry| entry.info.name == name);
            let entry = entry.ok_or_else(|| broken(&weights, format!("has no tensor {name}")))?;
            if entry.info.shape != shape {
                let what =
                    format!("{name}: wanted {shape:?} as config.json says, found {:?}", entry.info.shape);
                return Err(broken(&weights, what));
            }
            let values = values::to_f32(name, entry.info.dtype, &file.bytes[entry.range.clone()])?;
            match values.iter().all(|value| value.is_finite()) {
                true => Ok(values),
                false => Err(broken(&weights, format!("{name}: holds NaN or infinite values"))),
            }
        };
        let weight = tensor("linear.weight", &[outputs, inputs])?;
        let has_bias = config.get("bias").and_then(Value::as_bool).unwrap_or(true);
        let bias = if has_bias { Some(tensor("linear.bias", &[outputs])?) } else { None };
        Ok(Dense { place: place.to_string(), inputs, weight, bias, activation })
    }

    /// Values that it gives.
    pub fn outputs(&self) -> usize {
        self.weight.len() / self.inputs
    }

    /// What becomes of `inputs` values.
    pub fn apply(&self, state: &[f64]) -> Vec<f64> {
        let sum = |(at, row): (usize, &[f32])| {
            let products = row.iter().zip(state).map(|(weight, value)| f64::from(*weight) * value);
            let sum = products.sum::<f64>() + self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[at]));
            match self.activation {
                Activation::Identity => sum,
                Activation::Tanh => sum.tanh(),
            }
        };
        self.weight.chunks_exact(self.inputs).enumerate().map(sum).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of F32 tensors.
    fn safetensors(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, shape, values) in tensors {
            let start = data.len();
            data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            header.insert(
                name.to_string(),
                serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}),
            );
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        [(header.len() as u64).to_le_bytes().to_vec(), header, data].concat()
    }

    fn files(config: &str, weights: Vec<u8>) -> Vec<SideFile> {
        let file = |name: &str, bytes: Vec<u8>| SideFile { name: name.to_string(), bytes };
        vec![
            file("2_Dense/config.json", config.as_bytes().to_vec()),
            file("2_Dense/model.safetensors", weights),
        ]
    }

    const IDENTITY: &str = r#"{"in_features": 3, "out_features": 2, "bias": true,
        "activation_function": "torch.nn.modules.linear.Identity"}"#;
    const WEIGHT: (&str, &[usize], &[f32]) = ("linear.weight", &[2, 3], &[1.0, 2.0, 3.0, -1.0, 0.0, 0.5]);
    const BIAS: (&str, &[usize], &[f32]) = ("linear.bias", &[2], &[0.5, -0.25]);

    #[test]
    fn values_are_those_worked_by_hand() {
        let state = [1.0, -1.0, 2.0];
        let read =
            |config: &str| Dense::read(&files(config, safetensors(&[WEIGHT, BIAS])), "2_Dense").unwrap();
        // 1 - 2 + 6 + 0.5, and -1 + 0 + 1 - 0.25.
        assert_eq!(read(IDENTITY).apply(&state), [5.5, -0.25]);
        let tanh = IDENTITY.replace("linear.Identity", "activation.Tanh");
        assert_eq!(read(&tanh).apply(&state), [5.5f64.tanh(), (-0.25f64).tanh()]);
        let plain = IDENTITY.replace("true", "false");
        assert_eq!(read(&plain).apply(&state), [5.0, 0.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_file() {
        let whole = || safetensors(&[WEIGHT, BIAS]);
        let gelu = IDENTITY.replace("linear.Identity", "activation.GELU");
        let wide = IDENTITY.replace('3', "4");
        for (config, weights, wanted) in [
            (gelu.as_str(), whole(), "GELU\" is not known; wanted Identity or Tanh"),
            (&wide, whole(), "wanted [2, 4] as config.json says, found [2, 3]"),
            (IDENTITY, safetensors(&[WEIGHT]), "has no tensor linear.bias"),
            (IDENTITY, b"short".to_vec(), "2_Dense/model.safetensors"),
            ("{}", whole(), "in_features: wanted a number"),
        ] {
            let error = Dense::read(&files(config, weights), "2_Dense").unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let only_config = &files(IDENTITY, Vec::new())[..1];
        let error = Dense::read(only_config, "2_Dense").unwrap_err().to_string();
        assert!(error.contains("model.safetensors: is missing"), "{error}");
    }
}
