//! `bench --grid` and `profile`, small.

use tempfile::tempdir;

use crate::{has_keys, json, luthier, refusal};

#[test]
fn a_grid_measures_each_cell_and_keeps_those_that_fail_apart() {
    let at = tempdir().unwrap();
    let grid = [
        "bench",
        "builtin",
        "--new-tokens",
        "2",
        "--steps",
        "3",
        "--out",
        "grid.html",
        "--grid",
        "length=8,100000",
        "type=asis,Q8_0",
        "threads=1",
        "batch=2",
    ];
    let said = json(at.path(), &grid);
    let cells = said["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 4);
    for (cell, kind) in [(&cells[0], None), (&cells[2], Some("Q8_0"))] {
        has_keys(cell, &["prefill_tokens_per_s", "decode_tokens_per_s", "time_to_first_token_ms", "joules"]);
        assert!(cell["peak_rss_bytes"].as_u64().unwrap() > 1_000_000);
        assert_eq!(
            (cell["type"].as_str(), cell["batch"].as_u64(), cell["threads"].as_u64()),
            (kind, Some(2), Some(1))
        );
    }
    assert!(cells[1]["error"].as_str().unwrap().contains("context"), "{}", cells[1]);
    assert!(!said["best_within_memory"].as_array().unwrap().is_empty());
    let page = std::fs::read_to_string(at.path().join("grid.html")).unwrap();
    assert!(page.contains("Q8_0") && page.contains("decode tok/s"));
    assert!(refusal(at.path(), &grid[..9]).contains("grid.html"));
    for wrong in [
        &["--grid", "size=3"][..],
        &["--grid", "batch=1", "batch=2"],
        &["--grid", "--train"],
        &["--out", "x"],
    ] {
        let output = luthier(at.path(), &[&["bench", "builtin"], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_profile_accounts_for_the_time() {
    let at = tempdir().unwrap();
    json(at.path(), &["quantize", "builtin", "small.gguf", "--to", "Q4_0"]);
    let runs = [
        (
            &["profile", "small.gguf", "--prompt-tokens", "40", "--new-tokens", "4", "--out", "p.html"][..],
            "decoding",
        ),
        (&["profile", "builtin", "--prompt-tokens", "40", "--new-tokens", "4", "--batch", "2"], "prompt"),
        (&["profile", "builtin", "--train", "--batch", "2", "--seq", "32", "--steps", "1"], "backward"),
    ];
    for (run, part) in runs {
        let said = json(at.path(), run);
        let rows = said["operations"].as_array().unwrap();
        let share: f64 = rows.iter().map(|row| row["share"].as_f64().unwrap()).sum();
        assert!((share - 1.0).abs() < 1e-3, "{share}");
        let has = |operation: &str| {
            rows.iter()
                .any(|row| row["part"] == part && row["operation"].as_str().unwrap().contains(operation))
        };
        assert!(has("linear") && has("down_proj") && has("attention"), "{part}: {rows:?}");
        let product =
            rows.iter().find(|row| row["operation"].as_str().unwrap().contains("down_proj")).unwrap();
        assert!(
            product["gflop_per_s"].as_f64().unwrap() > 0.0 && product["gb_per_s"].as_f64().unwrap() > 0.0
        );
        has_keys(&said["peaks"], &["f32_gflop_per_s", "int8_gop_per_s", "memory_gb_per_s"]);
    }
    let page = std::fs::read_to_string(at.path().join("p.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("down_proj") && page.contains("layers"));
    assert_eq!(luthier(at.path(), &["profile", "builtin", "--seq", "4"]).status.code(), Some(2));
}
