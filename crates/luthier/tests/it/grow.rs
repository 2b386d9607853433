//! Growing, inheriting and slicing from the command line: options that go together, plans, and a training that goes on.

use tempfile::tempdir;

use crate::{json, luthier, refusal};

#[test]
fn options_that_do_not_go_together_are_wrong_use_and_say_what_to_take() {
    let at = tempdir().unwrap();
    for (wrong, wanted) in [
        (&["grow"][..], "MODEL and OUT"),
        (&["grow", "builtin", "out"], "--op"),
        (&["grow", "builtin", "out", "--op", "stack"], "--depth G or --width G"),
        (&["grow", "builtin", "out", "--op", "learn", "--depth", "2"], "stack"),
        (&["grow", "builtin", "out", "--op", "stack", "--width", "2"], "--op split --width"),
        (&["grow", "builtin", "out", "--op", "zero", "--depth", "2", "--width", "2"], "one of the two"),
        (&["grow", "builtin", "out", "--op", "zero", "--depth", "0"], "1 or more"),
        (&["grow", "builtin", "out", "--op", "zero", "--width", "2", "--asymmetry", "0.1"], "--op split"),
        (&["grow", "builtin", "out", "--op", "zero", "--depth", "2", "--params", "8B"], "--plan-timing"),
        (&["grow", "--plan-timing", "--params", "8B"], "--flops"),
        (&["grow", "--plan-timing", "--params", "8B", "--flops", "1e20", "--tokens", "1B"], "one of the two"),
        (&["grow", "--plan-timing", "--params", "x", "--flops", "1e20"], "number"),
        (&["grow", "builtin", "out", "--plan-timing", "--params", "8B", "--flops", "1e20"], "grows nothing"),
        (&["inherit", "builtin", "out"], "--layers"),
        (&["inherit", "builtin", "out", "--layers", "0"], "1 or more"),
        (&["slice", "builtin", "out"], "--ffn LIST"),
        (&["slice", "builtin", "out", "--ffn", "8,,8"], "--ffn"),
        (&["slice", "builtin", "out", "--ffn", "0"], "1 or more"),
        (&["slice", "builtin", "out", "--table", "t.csv"], "--name"),
        (&["slice", "builtin", "out", "--name", "row"], "--table"),
        (&["slice", "builtin", "out", "--table", "t.csv", "--name", "row", "--ffn", "8"], "leave --ffn"),
    ] {
        let output = luthier(at.path(), wrong);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {said}");
        assert!(said.contains(wanted), "{wrong:?}: {said}");
        assert!(!at.path().join("out").exists());
    }
}

#[test]
fn the_time_to_grow_is_the_published_one() {
    let at = tempdir().unwrap();
    for more in [&["--tokens", "15T"][..], &["--flops", "7.2e23"]] {
        let found = json(at.path(), &[&["grow", "--plan-timing", "--params", "8B"], more].concat());
        let tokens = found["growth_tokens"].as_f64().unwrap();
        assert!((tokens / 1e9 - 6.58).abs() < 0.005, "{found}");
        assert_eq!(found["growth_factor"], 4);
    }
}

#[test]
fn a_grown_model_is_reported_and_a_table_is_followed() {
    let at = tempdir().unwrap();
    let plan = json(at.path(), &["grow", "builtin", "grown", "--op", "split", "--depth", "2", "--plan"]);
    assert!(plan["memory_bytes"].as_u64().unwrap() > 0 && !at.path().join("grown").exists());
    let grown = json(at.path(), &["grow", "builtin", "grown", "--op", "split", "--depth", "2"]);
    assert_eq!(grown["keeps_function"], true);
    assert!(grown["logits_difference"]["relative"].as_f64().unwrap() < 1e-4, "{grown}");
    assert!(
        refusal(at.path(), &["grow", "builtin", "grown", "--op", "zero", "--depth", "2"]).contains("--force")
    );
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(at.path().join("grown/config.json")).unwrap()).unwrap();
    let n_layers = config["num_hidden_layers"].as_u64().unwrap() as usize;
    let table = format!(
        "name,# Layers,FFN Hidden Dims,Layers Skipped\nsmall,{},\"[16] * {} + [24]\",\"[1]\"\n",
        n_layers - 1,
        n_layers - 2
    );
    std::fs::write(at.path().join("table.csv"), table).unwrap();
    json(at.path(), &["slice", "grown", "small", "--table", "table.csv", "--name", "small"]);
    let said = refusal(at.path(), &["slice", "grown", "other", "--table", "table.csv", "--name", "large"]);
    assert!(said.contains("table.csv") && said.contains("small"), "{said}");
    let inherited = json(at.path(), &["inherit", "grown", "inherited", "--layers", "2", "--ffn", "0.5"]);
    assert_eq!(inherited["shape"][0]["layers"][1], 2);
    for place in ["small", "inherited"] {
        json(at.path(), &["logits", place, "--tokens", "1,2,3", "--out", &format!("{place}.safetensors")]);
    }
}
