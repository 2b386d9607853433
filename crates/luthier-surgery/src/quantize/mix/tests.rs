//! The types that llama-quantize was seen to choose.

use std::collections::BTreeMap;

use super::*;

/// The tensors of SmolLM2-135M as a GGUF file has them.
fn smollm2() -> Vec<TensorInfo> {
    let info = |name: String, shape: &[usize]| TensorInfo { name, dtype: Dtype::F32, shape: shape.to_vec() };
    let mut infos = vec![info("token_embd.weight".to_string(), &[49_152, 576])];
    for layer in 0..30 {
        for (name, shape) in [
            ("attn_norm", &[576][..]),
            ("ffn_down", &[576, 1536]),
            ("ffn_gate", &[1536, 576]),
            ("ffn_up", &[1536, 576]),
            ("ffn_norm", &[576]),
            ("attn_k", &[192, 576]),
            ("attn_output", &[576, 576]),
            ("attn_q", &[576, 576]),
            ("attn_v", &[192, 576]),
        ] {
            infos.push(info(format!("blk.{layer}.{name}.weight"), shape));
        }
    }
    infos.push(info("output_norm.weight".to_string(), &[576]));
    infos
}

fn counted(to: &str) -> String {
    let number = |key: &str, value: u32| (format!("llama.{key}"), GgufValue::U32(value));
    let metadata = [
        ("general.architecture".to_string(), GgufValue::String("llama".to_string())),
        number("block_count", 30),
        number("attention.head_count", 9),
        number("attention.head_count_kv", 3),
    ];
    let types = types(Mix::from_name(to).unwrap(), &Model::of(&metadata), &smollm2(), false);
    let mut counts = BTreeMap::<&str, usize>::new();
    types.iter().for_each(|dtype| *counts.entry(dtype.name()).or_default() += 1);
    counts.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

/// What llama-quantize (llama.cpp of llama-cpp-python 0.3.36) chose for this model.
#[test]
fn smollm2_gets_the_types_that_llama_quantize_gives_it() {
    for (to, wanted) in [
        ("Q8_0", "61 F32, 211 Q8_0"),
        ("Q4_0", "61 F32, 210 Q4_0, 1 Q8_0"),
        ("Q5_1", "61 F32, 210 Q5_1, 1 Q8_0"),
        ("Q2_K", "61 F32, 30 Q3_K, 180 Q4_0, 1 Q8_0"),
        ("Q3_K_S", "61 F32, 30 Q3_K, 180 Q4_0, 1 Q8_0"),
        ("Q3_K_M", "61 F32, 120 Q4_0, 29 Q4_K, 58 Q5_0, 2 Q5_1, 1 Q5_K, 1 Q8_0"),
        ("Q3_K_L", "61 F32, 120 Q4_0, 60 Q5_1, 30 Q5_K, 1 Q8_0"),
        ("Q4_K_S", "61 F32, 176 Q5_0, 27 Q4_K, 4 Q5_1, 3 Q5_K, 1 Q8_0"),
        ("Q4_K_M", "61 F32, 16 Q4_K, 166 Q5_0, 14 Q6_K, 15 Q8_0"),
        ("Q5_K_S", "61 F32, 180 Q5_1, 30 Q5_K, 1 Q8_0"),
        ("Q6_K", "61 F32, 30 Q6_K, 181 Q8_0"),
        ("TQ1_0", "61 F32, 180 Q4_0, 1 Q8_0, 30 TQ1_0"),
    ] {
        let mut wanted: Vec<&str> = wanted.split(", ").collect();
        wanted.sort_by_key(|count| count.split(' ').nth(1));
        assert_eq!(counted(to), wanted.join(", "), "{to}");
    }
}

#[test]
fn names_lead_back() {
    for name in Mix::names() {
        assert_eq!(Mix::from_name(&name.to_lowercase()).unwrap().name(), name);
    }
    assert_eq!(Mix::from_name("Q4_K"), Some(Mix::Q4_K_M));
    assert_eq!(Mix::from_name("Q4_K_L"), None);
}
