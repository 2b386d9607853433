//! The configs of models with experts that dense models can become, without a change of what they compute.

use serde_json::{Map, Value, json};

use crate::blocks::stack::StackShape;
use crate::config::Keys;
use crate::table::{self, Config, ModelShape};
use crate::{Error, Result};

/// What the experts are to be.
#[derive(Clone, Copy, Debug)]
pub struct Upcycling {
    /// Routed experts of every layer.
    pub experts: usize,
    /// Of these, how many each token goes through.
    pub top_k: usize,
    /// Inner width of one of them.
    pub inner: usize,
    /// Inner width of the expert that all tokens share; 0: there is none.
    pub shared_inner: usize,
    /// Whether the weights of the chosen experts sum to 1.
    pub normalized: bool,
}

/// A layout with experts that dense models of some architectures go into.
struct Family {
    dense: &'static [&'static str],
    model_type: &'static str,
    class: &'static str,
    /// Whether there always is, or never is, an expert that all tokens share.
    shared: bool,
    /// Whether the weights of the chosen experts always sum to 1.
    always_normalized: bool,
    /// Whether queries, keys and values may have biases; whether the output projection may, alike.
    qkv_bias: bool,
    output_bias: bool,
    /// Sets what is said differently.
    adjust: fn(&mut Config, &StackShape, &Upcycling) -> Result<()>,
}

const FAMILIES: &[Family] = &[
    Family {
        dense: &["llama", "mistral"],
        model_type: "mixtral",
        class: "MixtralForCausalLM",
        shared: false,
        always_normalized: true,
        qkv_bias: false,
        output_bias: false,
        adjust: mixtral,
    },
    Family {
        dense: &["qwen2"],
        model_type: "qwen2_moe",
        class: "Qwen2MoeForCausalLM",
        shared: true,
        always_normalized: false,
        qkv_bias: true,
        output_bias: false,
        adjust: qwen2_moe,
    },
    Family {
        dense: &["qwen3"],
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        shared: false,
        always_normalized: false,
        qkv_bias: true,
        output_bias: true,
        adjust: qwen3_moe,
    },
];

/// Whether the experts of a dense model of this config are joined by one that all tokens share. An error for a model
/// that has no layout with experts, and why.
pub fn is_shared(dense: &Map<String, Value>) -> Result<bool> {
    Ok(family(dense)?.0.shared)
}

/// The config of the model with experts that computes what the dense one does, once its weights are made of the dense
/// one's. Errors name the key that the layout with experts cannot hold.
pub fn upcycled_config(dense: &Map<String, Value>, upcycling: &Upcycling) -> Result<Map<String, Value>> {
    let (family, stack) = family(dense)?;
    if family.always_normalized && !upcycling.normalized {
        let what =
            format!("false, but the weights of a {} model's experts always sum to 1", family.model_type);
        return Err(Error::config("norm_topk_prob", what));
    }
    let attention = &stack.layers[0].attention;
    let mut config = dense.clone();
    for key in ["mlp_bias", "pretraining_tp", "auto_map", "is_llama_config", "rope_interleaved"] {
        config.shift_remove(key);
    }
    // Defaults differ from one architecture to another: everything that counts is said.
    for (key, value) in [
        ("architectures", json!([family.class])),
        ("model_type", json!(family.model_type)),
        ("num_key_value_heads", json!(attention.kv_heads)),
        ("head_dim", json!(attention.head_dim)),
        ("rms_norm_eps", json!(stack.norm.eps)),
        ("num_experts_per_tok", json!(upcycling.top_k)),
        ("output_router_logits", json!(false)),
        ("router_aux_loss_coef", json!(0.001)),
    ] {
        config.insert(key.to_string(), value);
    }
    say_theta(&mut config);
    (family.adjust)(&mut config, &stack, upcycling)?;
    table::shape(&config)?;
    Ok(config)
}

fn family(dense: &Map<String, Value>) -> Result<(&'static Family, StackShape)> {
    let keys = Keys::new(dense)?;
    let architecture = table::architecture(&keys)?;
    let refuse = |what: String| Err(Error::config("model_type", what));
    let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.dense).copied().collect();
    let known = known.join(", ");
    let stack = match (architecture.shape)(&keys)? {
        ModelShape::DecoderOnly { stack, .. } => *stack,
        _ => {
            let what = format!(
                "{} is no decoder-only model; wanted one of {known}, whose blocks can become experts",
                architecture.model_type
            );
            return refuse(what);
        }
    };
    if stack.layers.iter().any(|layer| layer.feed_forward.experts().is_some()) {
        return refuse(format!("{} has experts already; wanted a dense model", architecture.model_type));
    }
    let family = FAMILIES.iter().find(|family| family.dense.contains(&architecture.model_type));
    let Some(family) = family else {
        let what = format!(
            "there is no layout with experts for {} that other programs know; wanted one of {known}",
            architecture.model_type
        );
        return refuse(what);
    };
    let unheld = |key: &'static str| {
        let what = format!("true, but a {} model has no such biases; they would be lost", family.model_type);
        Err(Error::config(key, what))
    };
    for layer in &stack.layers {
        if layer.attention.qkv_bias && !family.qkv_bias || layer.attention.output_bias && !family.output_bias
        {
            return unheld("attention_bias");
        }
        if matches!(&layer.feed_forward, crate::blocks::mlp::MlpShape::Dense(shape) if shape.bias) {
            return unheld("mlp_bias");
        }
    }
    let inner = stack.layers[0].feed_forward.inner();
    if stack.layers.iter().any(|layer| layer.feed_forward.inner() != inner) {
        let what =
            format!("differs from layer to layer; experts of a {} model are of one width", family.model_type);
        return Err(Error::config("intermediate_size", what));
    }
    Ok((family, stack))
}

/// Writes down how fast rotary positions turn where that is left to the architecture.
fn say_theta(config: &mut Config) {
    const KEY: &str = "rope_theta";
    let within = |name: &str| config.get(name).is_some_and(|rope| rope.get(KEY).is_some());
    let said = config.get(KEY).is_some_and(|theta| !theta.is_null())
        || within("rope_parameters")
        || within("rope_scaling");
    if !said {
        match config.get_mut("rope_parameters").and_then(Value::as_object_mut) {
            Some(rope) => rope.insert(KEY.to_string(), json!(10_000.0)),
            None => config.insert(KEY.to_string(), json!(10_000.0)),
        };
    }
}

/// The window that all layers have; an error where they differ.
fn common_window(stack: &StackShape, model_type: &str) -> Result<Option<usize>> {
    let window = stack.layers[0].attention.window;
    if stack.layers.iter().any(|layer| layer.attention.window != window) {
        let what =
            format!("layers of a {model_type} model all have the same window, those of this one differ");
        return Err(Error::config("layer_types", what));
    }
    Ok(window)
}

fn mixtral(config: &mut Config, stack: &StackShape, upcycling: &Upcycling) -> Result<()> {
    let window = common_window(stack, "mixtral")?;
    for key in ["attention_bias", "layer_types"] {
        config.shift_remove(key);
    }
    config.insert("sliding_window".to_string(), json!(window));
    config.insert("intermediate_size".to_string(), json!(upcycling.inner));
    config.insert("num_local_experts".to_string(), json!(upcycling.experts));
    config.insert("router_jitter_noise".to_string(), json!(0.0));
    Ok(())
}

fn qwen2_moe(config: &mut Config, stack: &StackShape, upcycling: &Upcycling) -> Result<()> {
    let windows = stack.layers.iter().map(|layer| match layer.attention.window {
        Some(_) => "sliding_attention",
        None => "full_attention",
    });
    config.insert("layer_types".to_string(), json!(windows.collect::<Vec<_>>()));
    config.insert("qkv_bias".to_string(), json!(stack.layers[0].attention.qkv_bias));
    config.insert("shared_expert_intermediate_size".to_string(), json!(upcycling.shared_inner));
    qwen_experts(config, upcycling);
    Ok(())
}

fn qwen3_moe(config: &mut Config, stack: &StackShape, upcycling: &Upcycling) -> Result<()> {
    let window = common_window(stack, "qwen3_moe")?;
    config.shift_remove("layer_types");
    config.shift_remove("max_window_layers");
    config.insert("use_sliding_window".to_string(), json!(window.is_some()));
    config.insert("sliding_window".to_string(), json!(window));
    qwen_experts(config, upcycling);
    Ok(())
}

fn qwen_experts(config: &mut Config, upcycling: &Upcycling) {
    for (key, value) in [
        ("num_experts", json!(upcycling.experts)),
        ("moe_intermediate_size", json!(upcycling.inner)),
        ("norm_topk_prob", json!(upcycling.normalized)),
        ("decoder_sparse_step", json!(1)),
        ("mlp_only_layers", json!([])),
    ] {
        config.insert(key.to_string(), value);
    }
}
