//! The table of the numbers: a row a model, a column a quantity that any of them has.

use super::axis::Unit;
use super::page::escape;
use crate::measurements::Measurement;

/// A column: its head, its values, how they are written, and whether less or more is better (or neither).
struct Column {
    head: &'static str,
    value: fn(&Measurement) -> Option<f64>,
    unit: Unit,
    better: Option<Better>,
    /// Left out where all models have the same.
    only_if_different: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    Less,
    More,
}

const COLUMNS: [Column; 10] = [
    Column {
        head: "validation loss (nats/token)",
        value: |one| one.validation_loss_nats,
        unit: Unit::Loss,
        better: Some(Better::Less),
        only_if_different: false,
    },
    Column {
        head: "bits per byte",
        value: |one| one.bits_per_byte,
        unit: Unit::Loss,
        better: Some(Better::Less),
        only_if_different: false,
    },
    Column {
        head: "training tokens",
        value: |one| one.train_tokens.map(|tokens| tokens as f64),
        unit: Unit::Count,
        better: None,
        only_if_different: false,
    },
    Column {
        head: "parameters",
        value: |one| one.parameters.map(|count| count as f64),
        unit: Unit::Count,
        better: Some(Better::Less),
        only_if_different: false,
    },
    Column {
        head: "file size",
        value: |one| one.file_bytes.map(|bytes| bytes as f64),
        unit: Unit::Bytes,
        better: Some(Better::Less),
        only_if_different: false,
    },
    Column {
        head: "reading (tokens/s)",
        value: |one| one.prefill_tokens_per_s,
        unit: Unit::Rate,
        better: Some(Better::More),
        only_if_different: false,
    },
    Column {
        head: "decoding (tokens/s)",
        value: |one| one.decode_tokens_per_s,
        unit: Unit::Rate,
        better: Some(Better::More),
        only_if_different: false,
    },
    Column {
        head: "first token (ms)",
        value: |one| one.time_to_first_token_ms,
        unit: Unit::Rate,
        better: Some(Better::Less),
        only_if_different: false,
    },
    Column {
        head: "peak memory",
        value: |one| one.peak_rss_bytes.map(|bytes| bytes as f64),
        unit: Unit::Bytes,
        better: Some(Better::Less),
        only_if_different: false,
    },
    Column {
        head: "threads",
        value: |one| one.threads.map(|threads| threads as f64),
        unit: Unit::Count,
        better: None,
        only_if_different: true,
    },
];

/// The table, or an empty text without measurements. The best of a column is bold. Roles are said aloud because a narrow
/// page lays the rows out as cards, which makes browsers forget that it is a table.
pub(crate) fn table(measurements: &[Measurement]) -> String {
    if measurements.is_empty() {
        return String::new();
    }
    let is_shown = |column: &&Column| {
        let first = (column.value)(&measurements[0]);
        let mut values = measurements.iter().map(column.value);
        let differs = values.clone().any(|value| value != first);
        values.any(|value| value.is_some()) && (differs || !column.only_if_different)
    };
    let columns: Vec<&Column> = COLUMNS.iter().filter(is_shown).collect();
    let heads: String = columns
        .iter()
        .map(|column| format!("<th role=\"columnheader\" scope=\"col\">{}</th>", column.head))
        .collect();
    let best: Vec<Option<f64>> = columns.iter().map(|column| best(measurements, column)).collect();
    let mut rows = String::new();
    for (number, one) in measurements.iter().enumerate() {
        rows += &format!(
            "<tr role=\"row\"><td role=\"cell\" class=\"number\">{}</td>\
             <th role=\"rowheader\" scope=\"row\">{}</th>",
            number + 1,
            escape(&one.name)
        );
        for (column, best) in columns.iter().zip(&best) {
            let value = (column.value)(one);
            let shown = value.map_or("\u{2013}".to_string(), |value| column.unit.show(value));
            let shown = if value.is_some() && value == *best { format!("<b>{shown}</b>") } else { shown };
            rows += &format!("<td role=\"cell\" data-label=\"{}\">{shown}</td>", column.head);
        }
        rows += "</tr>\n";
    }
    format!(
        "<table role=\"table\">\n<thead role=\"rowgroup\"><tr role=\"row\">\
         <th role=\"columnheader\" scope=\"col\" class=\"number\">#</th>\
         <th role=\"columnheader\" scope=\"col\">model</th>{heads}</tr></thead>\n\
         <tbody role=\"rowgroup\">\n{rows}</tbody>\n</table>"
    )
}

/// The best value, where models differ in it.
fn best(measurements: &[Measurement], column: &Column) -> Option<f64> {
    let values: Vec<f64> = measurements.iter().filter_map(column.value).collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match column.better {
        Some(Better::Less) if low < high => Some(low),
        Some(Better::More) if low < high => Some(high),
        _ => None,
    }
}
