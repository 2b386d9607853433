//! One merge of a study's grid, its numbers, and the table of all.

use serde::{Deserialize, Serialize};

/// One merge of the grid.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub(super) struct Cell {
    pub(super) method: String,
    pub(super) n_experts: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) density: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) scale: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) t: Option<f64>,
}

/// What was measured of it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub(super) struct Measured {
    #[serde(flatten)]
    pub(super) cell: Cell,
    /// Mean over the merged experts' texts; none where the merge was refused.
    pub(super) held_in_nats_per_token: Option<f64>,
    /// Mean over those of (base - merged) / (base - expert): 1 where each text is predicted as well as by its expert.
    pub(super) held_in_gain_kept: Option<f64>,
    /// Mean over the held-out texts.
    pub(super) held_out_nats_per_token: Option<f64>,
    /// The base's mean less that: above 0 where merging helped.
    pub(super) held_out_gain_nats_per_token: Option<f64>,
    /// Why there are no numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) refused: Option<String>,
}

/// The table's columns.
pub(super) const HEAD: [&str; 9] = [
    "method",
    "n_experts",
    "density",
    "scale",
    "t",
    "held_in_nats_per_token",
    "held_in_gain_kept",
    "held_out_nats_per_token",
    "held_out_gain_nats_per_token",
];

impl Measured {
    pub(super) fn refused(cell: &Cell, why: String) -> Measured {
        Measured {
            cell: cell.clone(),
            held_in_nats_per_token: None,
            held_in_gain_kept: None,
            held_out_nats_per_token: None,
            held_out_gain_nats_per_token: None,
            refused: Some(why),
        }
    }

    pub(super) fn row(&self) -> Vec<String> {
        let number = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.4}"));
        let option = |value: Option<f64>| value.map_or("-".to_string(), |value| value.to_string());
        vec![
            self.cell.method.clone(),
            self.cell.n_experts.to_string(),
            option(self.cell.density),
            option(self.cell.scale),
            option(self.cell.t),
            number(self.held_in_nats_per_token),
            number(self.held_in_gain_kept),
            number(self.held_out_nats_per_token),
            number(self.held_out_gain_nats_per_token),
        ]
    }

    pub(super) fn words(&self) -> String {
        let cell = self.cell.words();
        if let Some(why) = &self.refused {
            return format!("{cell}: refused: {why}");
        }
        let row = self.row();
        format!("{cell}: held-in {} nats per token, held-out {}", row[5], row[7])
    }
}

impl Cell {
    pub(super) fn words(&self) -> String {
        let mut words = format!("{}, {} experts", self.method, self.n_experts);
        for (name, value) in [("density", self.density), ("scale", self.scale), ("t", self.t)] {
            if let Some(value) = value {
                words.push_str(&format!(", {name} {value}"));
            }
        }
        words
    }
}

/// The table with its columns under one another.
pub(super) fn aligned(table: &str) -> String {
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split('\t').collect()).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let line = |row: &Vec<&str>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}
