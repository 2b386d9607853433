//! JSON as Python's `json.dumps` writes it, because prompts are compared token for token.

use serde_json::Value;

/// The options of `json.dumps`.
pub(super) struct Style {
    pub(super) indent: Option<usize>,
    pub(super) ensure_ascii: bool,
    pub(super) sort_keys: bool,
    /// Between items, and between key and value.
    pub(super) separators: Option<(String, String)>,
}

pub(super) fn write(value: &Value, style: &Style) -> String {
    let mut out = String::new();
    write_value(&mut out, value, style, 0);
    out
}

fn write_value(out: &mut String, value: &Value, style: &Style, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (None, None, Some(float)) => out.push_str(&python_float(float)),
            _ => out.push_str(&number.to_string()),
        },
        Value::String(text) => write_text(out, text, style.ensure_ascii),
        Value::Array(items) => {
            write_list(out, style, depth, ['[', ']'], items.iter(), |out, item, depth| {
                write_value(out, item, style, depth);
            });
        }
        Value::Object(entries) => {
            let mut entries: Vec<(&String, &Value)> = entries.iter().collect();
            if style.sort_keys {
                entries.sort_by(|a, b| a.0.cmp(b.0));
            }
            let colon = style.separators.as_ref().map_or(": ", |(_, key)| key);
            write_list(out, style, depth, ['{', '}'], entries.into_iter(), |out, (key, value), depth| {
                write_text(out, key, style.ensure_ascii);
                out.push_str(colon);
                write_value(out, value, style, depth);
            });
        }
    }
}

fn write_list<T>(
    out: &mut String,
    style: &Style,
    depth: usize,
    brackets: [char; 2],
    items: impl ExactSizeIterator<Item = T>,
    mut write_item: impl FnMut(&mut String, T, usize),
) {
    let is_empty = items.len() == 0;
    let default = if style.indent.is_some() { "," } else { ", " };
    let comma = style.separators.as_ref().map_or(default, |(item, _)| item);
    let new_line = |out: &mut String, depth: usize| {
        if let Some(width) = style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width.saturating_mul(depth).min(4096)));
        }
    };
    out.push(brackets[0]);
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push_str(comma);
        }
        new_line(out, depth + 1);
        write_item(out, item, depth + 1);
    }
    if !is_empty {
        new_line(out, depth);
    }
    out.push(brackets[1]);
}

fn write_text(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            control if control < ' ' => out.push_str(&format!("\\u{:04x}", control as u32)),
            other if !ensure_ascii || other.is_ascii() && other != '\u{7f}' => out.push(other),
            '\u{7f}' => out.push('\u{7f}'),
            other => {
                let mut units = [0u16; 2];
                for unit in other.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.push('"');
}

/// `repr(float)`: shortest digits that read back the same, exponent from 1e16 on and below 1e-4.
fn python_float(number: f64) -> String {
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |rest| ("-", rest));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = number.to_string();
    if text.contains('.') { text } else { format!("{text}.0") }
}
