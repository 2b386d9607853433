//! The grid of `luthier bench`: its table, page and JSON.

use luthier_measure::report::{Grid, grid_page};
use serde_json::{Value, json};

use super::Bench;
use crate::grid::{Cell, Shared, Work, cells, measure};
use crate::pages::{check_page_out, write_page};
use crate::session::{Report, Session};

/// What is told of a cell: head, key in the cell's JSON, what it is divided by, digits behind the point.
static COLUMNS: [(&str, &str, f64, usize); 7] = [
    ("prompt tok/s", "prefill_tokens_per_s", 1.0, 1),
    ("decode tok/s", "decode_tokens_per_s", 1.0, 1),
    ("first token ms", "time_to_first_token_ms", 1.0, 1),
    ("train tok/s", "train_tokens_per_s", 1.0, 1),
    ("step ms", "step_ms", 1.0, 1),
    ("peak MB", "peak_rss_bytes", 1e6, 1),
    ("joules", "joules", 1.0, 2),
];

/// Heads of what tells a cell from others.
const HEADS: [&str; 6] = ["work", "type", "threads", "batch", "length", "kv"];

impl Bench {
    pub(super) fn grid(&self, session: &Session) -> anyhow::Result<Report> {
        if let Some(out) = &self.out {
            check_page_out(out, self.force, &[])?;
        }
        let axes: Vec<_> = self.grid.iter().flatten().map(|axis| axis.0.clone()).collect();
        let cells = cells(&axes, session.thread_count()).map_err(anyhow::Error::msg)?;
        let folder = tempfile::tempdir()?;
        let shared = Shared {
            new_tokens: self.new_tokens.map(|n| n.0),
            runs: self.runs.map_or(1, |n| n.0),
            steps: self.steps.map(|n| n.0),
            folder: folder.path(),
        };
        let mut done: Vec<(Cell, Value)> = Vec::new();
        for (number, cell) in cells.iter().enumerate() {
            session.note(&format!("cell {} of {}: {}", number + 1, cells.len(), labels(cell).join(" ")));
            // A cell that cannot be measured, such as a prompt longer than the context, leaves the others be.
            let result = measure(&self.model, cell, &shared).unwrap_or_else(|error| {
                session.note(&format!("cell {}: {error:#}", number + 1));
                json!({ "error": format!("{error:#}") })
            });
            done.push((cell.clone(), result));
        }
        let best = best_within(&done);
        let grid = Grid { heads: shown_heads(&done), rows: rows(&done) };
        let best_words = best_in_words(&done, &best);
        if let Some(out) = &self.out {
            let title = format!("Speed and memory of {}", self.model);
            let notes = [
                "Each cell ran in a process of its own; peak memory is its peak resident size, mapped pages included. Tokens a \
                 second are those of all sequences together."
                    .to_string(),
                format!("Runs of each cell, of which the median counts: {}.", shared.runs),
            ];
            write_page(out, self.force, &[], &grid_page(&title, &best_words, &grid, &notes))?;
        }
        let json_cells: Vec<Value> = done.iter().map(|(cell, result)| in_json(cell, result)).collect();
        let json = json!({
            "model": self.model, "cells": json_cells, "best_within_memory": best, "page": self.out,
            "luthier_version": env!("CARGO_PKG_VERSION"),
        });
        let mut text = grid.as_text();
        best_words.iter().for_each(|line| text += &format!("{line}\n"));
        if let Some(out) = &self.out {
            text += &format!("{}\n", out.display());
        }
        Ok(Report { json, text })
    }
}

fn in_json(cell: &Cell, result: &Value) -> Value {
    let mut json = json!(cell);
    for (key, value) in result.as_object().into_iter().flatten() {
        // Ids of a thousand tokens say nothing about speed; what was asked for stays.
        if !key.ends_with("token_ids") && json.get(key).is_none() {
            json[key] = value.clone();
        }
    }
    json
}

/// What tells the cell from others, in the order of [`HEADS`].
fn labels(cell: &Cell) -> [String; 6] {
    let work = match cell.work {
        Work::Generate => "generate",
        Work::Train => "train",
    };
    [
        work.to_string(),
        cell.kind.clone().unwrap_or("as it is".to_string()),
        cell.threads.to_string(),
        cell.batch.to_string(),
        cell.length.map_or("-".to_string(), |length| length.to_string()),
        cell.kv.map_or("-".to_string(), |kind| kind.as_str().to_string()),
    ]
}

fn shown(done: &[(Cell, Value)]) -> Vec<&'static (&'static str, &'static str, f64, usize)> {
    COLUMNS.iter().filter(|column| done.iter().any(|(_, result)| result[column.1].is_number())).collect()
}

fn shown_heads(done: &[(Cell, Value)]) -> Vec<String> {
    HEADS.iter().copied().chain(shown(done).iter().map(|column| column.0)).map(String::from).collect()
}

fn rows(done: &[(Cell, Value)]) -> Vec<Vec<String>> {
    let columns = shown(done);
    let row = |(cell, result): &(Cell, Value)| {
        let numbers = columns.iter().map(|(_, key, divisor, digits)| match result[*key].as_f64() {
            Some(value) => format!("{:.digits$}", value / divisor),
            None => "-".to_string(),
        });
        labels(cell).into_iter().chain(numbers).collect()
    };
    done.iter().map(row).collect()
}

/// Numbers of the cells that decode (or train) faster than every other that takes no more memory, by rising memory.
fn best_within(done: &[(Cell, Value)]) -> Vec<usize> {
    let point = |number: usize| {
        let (cell, result) = &done[number];
        let key = if cell.work == Work::Train { "train_tokens_per_s" } else { "decode_tokens_per_s" };
        Some((cell.work, result["peak_rss_bytes"].as_f64()?, result[key].as_f64()?))
    };
    let points: Vec<(usize, (Work, f64, f64))> =
        (0..done.len()).filter_map(|number| Some((number, point(number)?))).collect();
    let mut best: Vec<&(usize, (Work, f64, f64))> = points
        .iter()
        .filter(|(_, (work, memory, speed))| {
            !points.iter().any(|(_, other)| {
                other.0 == *work
                    && other.1 <= *memory
                    && other.2 >= *speed
                    && (other.1 < *memory || other.2 > *speed)
            })
        })
        .collect();
    best.sort_by(|a, b| a.1.1.total_cmp(&b.1.1));
    best.into_iter().map(|(number, _)| *number).collect()
}

fn best_in_words(done: &[(Cell, Value)], best: &[usize]) -> Vec<String> {
    let line = |number: &usize| {
        let (cell, result) = &done[*number];
        let key = if cell.work == Work::Train { "train_tokens_per_s" } else { "decode_tokens_per_s" };
        let (memory, speed) = (result["peak_rss_bytes"].as_f64()? / 1e6, result[key].as_f64()?);
        let [work, kind, threads, batch, length, _] = labels(cell);
        Some(format!(
            "Within {memory:.0} MB nothing is faster than {speed:.1} tokens/s: {work}, {kind}, {threads} threads, batch {batch}, length {length}."
        ))
    };
    best.iter().filter_map(line).collect()
}
