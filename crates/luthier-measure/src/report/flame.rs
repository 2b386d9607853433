//! A profile as a page: what holds what from top to bottom, time from left to right, and the operations as a table.

use luthier_ops::profile::Profile;

use super::page::{document, escape};
use crate::metrics::profile::{ProfileRow, profile_rows};

/// Width of a picture in its own units; the page scales it.
const WIDTH: f64 = 1200.0;
/// Height of a level.
const LEVEL: f64 = 26.0;
/// Width of a letter, roughly.
const LETTER: f64 = 7.0;
/// What is narrower is left out: it could not be seen.
const NARROWEST: f64 = 0.4;

/// A box of the picture.
#[derive(Clone, Debug)]
struct Cell {
    name: String,
    is_operation: bool,
    ns: f64,
    calls: u64,
    parts: Vec<Cell>,
}

/// The page of a profile. `notes` say how it was made.
pub fn profile_page(title: &str, profile: &Profile, notes: &[String]) -> String {
    let tree = cell(profile, 0, &children(profile));
    let rows = profile_rows(profile);
    let mut body = format!("<h1>{}</h1>\n", escape(title));
    let total = profile.nodes[0].time.as_secs_f64() * 1e3;
    let most = rows.first().map_or(String::new(), |row| {
        format!(" Most of it, {:.0}%, is {} ({}).", row.share * 100.0, row.operation, row.part)
    });
    body += &format!("<p>{total:.1} ms in all.{}</p>\n", escape(&most));
    for (heading, picture) in [("Layers together", flame(&together(&tree))), ("Layer by layer", flame(&tree))]
    {
        body += &format!(
            "<section>\n<h2>{heading}</h2>\n<figure class=\"flame\" tabindex=\"0\" aria-label=\"{heading}\">\n{picture}\n\
             </figure>\n</section>\n"
        );
    }
    body += &format!(
        "<p class=\"quiet\">From left to right: time. A box stands under what it is part of; pointed at, it tells its numbers. Empty \
         space under a box is time that no operation accounts for.</p>\n\
         <section aria-labelledby=\"numbers\">\n<h2 id=\"numbers\">Operations</h2>\n\
         <div class=\"table\" role=\"region\" aria-labelledby=\"numbers\" tabindex=\"0\">\n{}\n</div>\n</section>\n",
        table(&rows)
    );
    let notes: String =
        notes.iter().map(|note| format!("<p class=\"quiet\">{}</p>\n", escape(note))).collect();
    body += &format!("<section>\n<h2>How it was measured</h2>\n{notes}</section>\n");
    document(title, &body)
}

fn children(profile: &Profile) -> Vec<Vec<usize>> {
    let mut children = vec![Vec::new(); profile.nodes.len()];
    for (number, node) in profile.nodes.iter().enumerate() {
        if let Some(parent) = node.parent {
            children[parent].push(number);
        }
    }
    children
}

fn cell(profile: &Profile, number: usize, children: &[Vec<usize>]) -> Cell {
    let node = &profile.nodes[number];
    Cell {
        name: node.name.clone(),
        is_operation: node.is_operation,
        ns: node.time.as_secs_f64() * 1e9,
        calls: node.calls,
        parts: children[number].iter().map(|part| cell(profile, *part, children)).collect(),
    }
}

/// The same, numbered parts of one kind as one: `layers`.
fn together(tree: &Cell) -> Cell {
    let mut parts: Vec<Cell> = Vec::new();
    for part in &tree.parts {
        let numbered = part.name.rsplit_once(' ').filter(|(_, number)| number.parse::<usize>().is_ok());
        let mut part = part.clone();
        if let Some((kind, _)) = numbered.filter(|_| !part.is_operation) {
            part.name = format!("{kind}s");
        }
        join(&mut parts, part);
    }
    Cell { parts: parts.iter().map(together).collect(), ..tree.clone() }
}

fn join(parts: &mut Vec<Cell>, new: Cell) {
    match parts.iter_mut().find(|part| (&part.name, part.is_operation) == (&new.name, new.is_operation)) {
        Some(part) => {
            part.ns += new.ns;
            part.calls += new.calls;
            new.parts.into_iter().for_each(|inner| join(&mut part.parts, inner));
        }
        None => parts.push(new),
    }
}

fn flame(tree: &Cell) -> String {
    let mut boxes = String::new();
    let depth = draw(tree, 0.0, WIDTH / tree.ns.max(1.0), 0, tree.ns.max(1.0), &mut boxes);
    let height = (depth + 1) as f64 * LEVEL;
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n{boxes}</svg>")
}

/// Draws a box and what is under it; gives the deepest level.
fn draw(cell: &Cell, left: f64, scale: f64, depth: usize, all: f64, to: &mut String) -> usize {
    let width = cell.ns * scale;
    if width < NARROWEST {
        return depth;
    }
    let top = depth as f64 * LEVEL;
    let tip = format!(
        "{}: {:.2} ms, {:.1}% of all, {} times",
        cell.name,
        cell.ns / 1e6,
        cell.ns / all * 100.0,
        cell.calls
    );
    *to += &format!(
        "<g><title>{}</title><rect x=\"{left:.2}\" y=\"{top}\" width=\"{:.2}\" height=\"{}\" rx=\"2\" fill=\"var(--{})\"/>",
        escape(&tip),
        (width - 1.0).max(NARROWEST),
        LEVEL - 2.0,
        ink(cell)
    );
    let letters = ((width - 8.0) / LETTER) as usize;
    if letters >= 3 {
        let whole = cell.name.chars().count() <= letters;
        let shown: String = cell.name.chars().take(if whole { letters } else { letters - 1 }).collect();
        let shown = if whole { shown } else { format!("{shown}\u{2026}") };
        let (x, y) = (left + 4.0, top + LEVEL * 0.66);
        *to += &format!("<text x=\"{x:.2}\" y=\"{y:.1}\">{}</text>", escape(&shown));
    }
    *to += "</g>\n";
    let mut deepest = depth;
    let mut at = left;
    for part in &cell.parts {
        deepest = deepest.max(draw(part, at, scale, depth + 1, all, to));
        at += part.ns * scale;
    }
    deepest
}

/// The colour of a kind of operation.
fn ink(cell: &Cell) -> &'static str {
    if !cell.is_operation {
        return "muted";
    }
    match cell.name.split(' ').next().unwrap_or_default() {
        "linear" | "experts" => "series-0",
        "attention" | "cache" => "series-1",
        "rms_norm" | "layer_norm" | "add" | "rope" => "series-2",
        "projected_cross_entropy" | "embedding" => "series-3",
        _ => "series-4",
    }
}

fn table(rows: &[ProfileRow]) -> String {
    const HEADS: [&str; 6] = ["share", "ms", "calls", "microseconds a call", "GFLOP/s", "GB/s"];
    let heads: String =
        HEADS.iter().map(|head| format!("<th role=\"columnheader\" scope=\"col\">{head}</th>")).collect();
    let mut body = String::new();
    for row in rows {
        let dash = || "\u{2013}".to_string();
        let number = |value: Option<f64>| value.map_or_else(dash, |value| format!("{value:.1}"));
        let calls = if row.calls > 0 { row.calls.to_string() } else { dash() };
        let each = (row.calls > 0).then(|| row.ms * 1e3 / row.calls as f64);
        let cells = [
            format!("{:.1}%", row.share * 100.0),
            format!("{:.2}", row.ms),
            calls,
            number(each),
            number(row.gflop_per_s),
            number(row.gb_per_s),
        ];
        let cells: String = HEADS
            .iter()
            .zip(cells)
            .map(|(head, cell)| format!("<td role=\"cell\" data-label=\"{head}\">{cell}</td>"))
            .collect();
        body += &format!(
            "<tr role=\"row\"><td role=\"cell\" data-label=\"part\">{}</td>\
             <th role=\"rowheader\" scope=\"row\">{}</th>{cells}</tr>\n",
            escape(&row.part),
            escape(&row.operation)
        );
    }
    format!(
        "<table role=\"table\">\n<thead role=\"rowgroup\"><tr role=\"row\"><th role=\"columnheader\" scope=\"col\">part</th>\
         <th role=\"columnheader\" scope=\"col\">operation</th>{heads}</tr></thead>\n\
         <tbody role=\"rowgroup\">\n{body}</tbody>\n</table>"
    )
}

#[cfg(test)]
mod tests {
    use luthier_ops::profile::{numbered_part, part, record};

    use super::*;

    #[test]
    fn layers_are_drawn_together_and_apart() {
        let ((), profile) = record(|| {
            for layer in 0..2 {
                let _step = part("<b>forward</b>");
                let _layer = numbered_part("layer", layer);
                std::hint::black_box((0..50_000).map(f64::from).sum::<f64>());
            }
        });
        let page = profile_page("A model", &profile, &["Two layers.".to_string()]);
        assert!(page.contains(">layers</text>") && page.contains(">layer 1</text>"), "{page}");
        assert!(page.contains("&lt;b&gt;") && !page.contains("<b>"));
        assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("<script"));
    }
}
