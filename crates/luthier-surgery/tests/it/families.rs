//! Every family through every axis of `prune`: it runs, or the refusal says why it cannot be.

use luthier_arch::{LoadOptions, load};
use luthier_surgery::Input;
use luthier_surgery::prune::{Budget, Options, Targets, run};

use crate::models::{GOLDEN, golden, open};
use crate::prune::{layout, made_scores};

/// What cannot be: the axis, the models, words of the reason.
const REFUSED: [(&str, &[&str], &str); 3] = [
    ("hidden", &["gemma2", "llama", "t5gemma"], "is not a multiple of num_attention_heads="),
    ("heads", &["gemma2", "llama", "t5gemma"], "is not a multiple of num_attention_heads="),
    ("ffn", &["mixtral", "qwen2_moe"], "no feed-forward blocks but experts"),
];

fn half(axis: &str, input: &Input) -> Options {
    let half = || Some("0.5".parse().unwrap());
    let mut targets = Targets::default();
    let mut budget = None;
    match axis {
        "layers" => targets.layers = half(),
        // Where heads have to divide the width, 24 of 36 does for all.
        "hidden" => targets.hidden = Some("0.67".parse().unwrap()),
        "ffn" => targets.ffn = half(),
        "heads" => targets.heads = half(),
        "kv_groups" => targets.kv_groups = half(),
        "experts" => targets.experts = half(),
        "params" => budget = Some(Budget::Parameters(layout(input).parameters() * 3 / 4)),
        _ => budget = Some(Budget::Memory(layout(input).parameters() * 3)),
    }
    Options { targets, budget, ..Options::default() }
}

#[test]
fn every_axis_of_every_family() {
    let home = tempfile::tempdir().unwrap();
    let mut problems = Vec::new();
    for name in GOLDEN.into_iter().chain(["bert", "uneven"]) {
        let input = open(&golden(name));
        let scores = made_scores(&input, &home.path().join("scores"));
        let has_experts = layout(&input).tensors.iter().any(|spec| spec.role.part.expert().is_some());
        for axis in ["layers", "hidden", "ffn", "heads", "kv_groups", "experts", "params", "memory"] {
            if axis == "experts" && !has_experts {
                continue;
            }
            let out = home.path().join("out");
            let options = Options { scores: Some(scores.clone()), force: true, ..half(axis, &input) };
            let known = REFUSED.iter().find(|(of, models, _)| *of == axis && models.contains(&name));
            match (run(&input, &out, &options), known) {
                (Ok(report), None) => {
                    let made = open(&out);
                    load(
                        &made.checkpoint,
                        &LoadOptions { trainable: false, device: candle_core::Device::Cpu },
                    )
                    .unwrap();
                    // Half of one group is one.
                    let (before, after) = report.parameters;
                    assert!(after < before || axis == "kv_groups" && after == before, "{name} {axis}");
                    if let Some(Budget::Parameters(limit)) = options.budget {
                        assert!(report.parameters.1 <= limit, "{name} {axis}");
                    }
                }
                (Err(problem), Some((.., reason))) => {
                    let problem = problem.to_string();
                    assert!(problem.contains(reason), "{name} {axis}: {problem}");
                }
                (Ok(_), Some(_)) => problems.push(format!("{name} {axis}: runs after all")),
                (Err(problem), None) => problems.push(format!("{name} {axis}: {problem}")),
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}
