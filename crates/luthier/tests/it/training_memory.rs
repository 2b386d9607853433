//! Training within a memory budget: the process keeps to it, and computes what it would without one, bit for bit.

use serde_json::Value;

use crate::memory::make;
use crate::{json, luthier};

/// 16 rows of 64 tokens in a model of 8 layers, whose activations are 200 MB.
const FLAGS: [&str; 9] = ["bench", "model", "--train", "--batch", "16", "--seq", "64", "--steps", "3"];

fn bytes(report: &Value, key: &str) -> u64 {
    report["memory"][key].as_u64().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn steps_keep_to_their_budget_bit_for_bit() {
    let at = tempfile::tempdir().unwrap();
    let at = at.path();
    make(at, "model", 8, 1);
    let bench = |budget: &str, more: &[&str]| json(at, &[&FLAGS[..], &["--memory", budget], more].concat());
    for more in [&[][..], &["--lora-rank", "8"]] {
        let free = bench("100G", more);
        assert_eq!(bytes(&free, "recomputed_layers"), 0);
        let refused = luthier(at, &[&FLAGS[..], &["--memory", "1M"], more].concat());
        let said = String::from_utf8_lossy(&refused.stderr).to_string();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        let least: u64 =
            said.split("memory: wanted ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let most = bytes(&free, "planned_bytes");
        assert!(least < most - (100 << 20), "{least} {most}");
        // What is held differs from run to run by some pages.
        for budget in [most - (30 << 20), (least + most) / 2, least + (8 << 20)] {
            let report = bench(&budget.to_string(), more);
            let (planned, again) = (bytes(&report, "planned_bytes"), bytes(&report, "recomputed_layers"));
            let peak = report["peak_rss_bytes"].as_u64().unwrap();
            assert!(peak <= budget && planned <= budget && again > 0, "{peak} of {budget}, {again} layers");
            assert_eq!(report["losses"], free["losses"], "{again} layers computed again");
        }
    }
}
