//! Studies of merges of scaled copies of the built-in model.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::{json as run, refusal};

const STUDY: &str = "base_model: builtin\nexperts:\n  - {model: a, text: a.txt}\n  - {model: b, text: b.txt}\n\
                     held_out: [c.txt]\nmethods: [linear, ties, slerp]\ndensity: [0.5, 1]\nt: [0.25]\n";

/// Two experts and three texts.
fn prepared(at: &Path) {
    let write = |name: &str, text: &str| fs::write(at.join(name), text).unwrap();
    for (name, weight) in [("a", "0.98"), ("b", "1.03")] {
        let recipe = format!(
            "models: [{{model: builtin, parameters: {{weight: {weight}}}}}]\nmerge_method: linear\nparameters: {{normalize: false}}\n"
        );
        write(&format!("{name}.yaml"), &recipe);
        run(at, &["merge", &format!("{name}.yaml"), name]);
    }
    write("a.txt", &"She was fully convinced that the walk would be a long one. ".repeat(3));
    write("b.txt", &"The rain began again before they had reached the bridge. ".repeat(3));
    write("c.txt", &"A letter arrived in the evening, and nobody wished to open it. ".repeat(3));
    write("study.yaml", STUDY);
}

fn loss(at: &Path, model: &str, text: &str) -> f64 {
    let found = run(at, &["perplexity", model, "--text", text]);
    found["nll_nats_per_token"].as_f64().unwrap_or_else(|| panic!("{found}"))
}

#[test]
fn a_study_has_the_losses_of_its_merges_and_goes_on_where_it_was_stopped() {
    let at = tempdir().unwrap();
    let at = at.path();
    prepared(at);
    let plan = run(at, &["merge", "--study", "study.yaml", "out", "--plan"]);
    assert_eq!(plan["cells"].as_array().unwrap().len(), 4);
    assert!(!at.join("out").exists());
    let study = run(at, &["merge", "--study", "study.yaml", "out"]);
    let cells = study["cells"].as_array().unwrap();
    let methods: Vec<&str> = cells.iter().map(|cell| cell["method"].as_str().unwrap()).collect();
    assert_eq!(methods, ["linear", "ties", "ties", "slerp"]);

    // Each cell is the merge that the recipe of the same words makes.
    let models = "models: [{model: a}, {model: b}]\nparameters: {weight: 1, density: 0.5, t: 0.25}\n";
    for (cell, head) in [
        (0, "merge_method: linear\n"),
        (1, "merge_method: ties\nbase_model: builtin\n"),
        (3, "merge_method: slerp\nbase_model: a\n"),
    ] {
        fs::write(at.join("one.yaml"), format!("{head}{models}")).unwrap();
        run(at, &["merge", "one.yaml", "one", "--force"]);
        let near = |key: &str, wanted: f64| {
            let came = cells[cell][key].as_f64().unwrap();
            assert!((came - wanted).abs() < 1e-5, "{head}{key}: {came}, wanted {wanted}");
        };
        near("held_in_nats_per_token", (loss(at, "one", "a.txt") + loss(at, "one", "b.txt")) / 2.0);
        let held_out = loss(at, "one", "c.txt");
        near("held_out_nats_per_token", held_out);
        near("held_out_gain_nats_per_token", loss(at, "builtin", "c.txt") - held_out);
    }

    // Killed while it wrote the fourth cell; the third one's number is changed to see that it is not measured again.
    let path = at.join("out/cells.jsonl");
    let lines: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(str::to_string).collect();
    assert_eq!(lines.len(), 3 + 4);
    let mut third: Value = serde_json::from_str(&lines[5]).unwrap();
    third["cell"]["held_in_nats_per_token"] = json!(123.0);
    let half = &lines[6][..lines[6].len() / 2];
    fs::write(&path, format!("{}\n{third}\n{half}", lines[..5].join("\n"))).unwrap();
    let again = run(at, &["merge", "--study", "study.yaml", "out"]);
    assert_eq!(again["cells"][2]["held_in_nats_per_token"], 123.0);
    for cell in [0, 1, 3] {
        assert_eq!(again["cells"][cell], study["cells"][cell]);
    }
    let table = fs::read_to_string(at.join("out/study.tsv")).unwrap();
    assert!(table.starts_with("method\tn_experts\tdensity\tscale\tt\t") && table.lines().count() == 5);

    // The grid may grow; what is measured on may not change.
    fs::write(at.join("study.yaml"), STUDY.replace("t: [0.25]", "t: [0.25, 1]")).unwrap();
    let more = run(at, &["merge", "--study", "study.yaml", "out"]);
    assert_eq!(more["cells"].as_array().unwrap().len(), 5);
    assert_eq!(more["cells"][3], study["cells"][3]);
    fs::write(at.join("c.txt"), "Something else altogether. ".repeat(4)).unwrap();
    assert!(refusal(at, &["merge", "--study", "study.yaml", "out"]).contains("--force"));
    let forced = run(at, &["merge", "--study", "study.yaml", "out", "--force"]);
    assert_ne!(forced["cells"][2]["held_in_nats_per_token"], 123.0);
}

#[test]
fn what_a_study_cannot_vary_is_refused() {
    let at = tempdir().unwrap();
    let at = at.path();
    for (from, to, wanted) in [
        ("methods: [linear, ties, slerp]", "methods: [linear, tis]", "did you mean"),
        ("t: [0.25]\n", "", "wants the key t"),
        ("density: [0.5, 1]", "density: []", "the list is empty"),
        ("density: [0.5, 1]", "density: [.inf]", "wanted numbers"),
        ("held_out: [c.txt]", "held_out: [b.txt]", "held-out texts belong to none"),
        ("{model: b,", "{model: a,", "named twice"),
        ("{model: b,", "{model: builtin,", "named twice"),
        ("t: [0.25]", "t: [0.25]\nn_experts: [3]", "wanted 1 to 2, came 3"),
        ("held_out", "heldout", "did you mean held_out"),
    ] {
        let study = STUDY.replace(from, to);
        assert_ne!(study, STUDY, "{from}");
        fs::write(at.join("study.yaml"), study).unwrap();
        let said = refusal(at, &["merge", "--study", "study.yaml", "out"]);
        assert!(said.contains(wanted), "{to}: {said}");
        assert!(!at.join("out").exists());
    }
    fs::create_dir(at.join("out")).unwrap();
    fs::write(at.join("out/note.txt"), "mine").unwrap();
    prepared(at);
    assert!(refusal(at, &["merge", "--study", "study.yaml", "out"]).contains("holds no study"));
    fs::remove_file(at.join("c.txt")).unwrap();
    assert!(refusal(at, &["merge", "--study", "study.yaml", "new"]).contains("c.txt"));
}
