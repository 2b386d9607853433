//! The page: what it says, and how that becomes HTML.

use super::curves::{LossCurve, curves_chart};
use super::table::table;
use super::tradeoff::tradeoff_chart;
use crate::Result;
use crate::frontier::{Cost, Quality};
use crate::measurements::Measurement;

/// What a page shows, in this order; what is empty is left out. All texts are shown as they are: markup in them is text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// Heading, and the window's title.
    pub title: String,
    /// What was done and what came out.
    pub paragraphs: Vec<String>,
    /// The models: charts of quality against each cost, and a table.
    pub measurements: Vec<Measurement>,
    /// Losses over training tokens; the first six are drawn.
    pub curves: Vec<LossCurve>,
    /// Texts that the models wrote.
    pub samples: Vec<Sample>,
    /// Machine, seed, commands, caveats.
    pub notes: Vec<String>,
}

/// A continuation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Whose it is.
    pub name: String,
    /// What was given.
    pub prompt: String,
    /// What came.
    pub continuation: String,
}

/// The page as one HTML document: style and pictures within, no script, and a policy that forbids it to load anything.
///
/// # Errors
/// A chart that cannot be drawn.
pub fn render_page(page: &Page) -> Result<String> {
    let mut body = format!("<h1>{}</h1>\n", escape(&page.title));
    for paragraph in &page.paragraphs {
        body += &format!("<p>{}</p>\n", escape(paragraph));
    }
    body += &tradeoffs(&page.measurements)?;
    if !page.measurements.is_empty() {
        let table = table(&page.measurements);
        body += &format!(
            "<section aria-labelledby=\"numbers\">\n<h2 id=\"numbers\">Numbers</h2>\n\
             <div class=\"table\" role=\"region\" aria-labelledby=\"numbers\" tabindex=\"0\">\n{table}\n</div>\n\
             <p class=\"quiet\">Bold: best of its column. A dash: not measured.</p>\n</section>\n"
        );
    }
    if let Some(chart) = curves_chart(&page.curves)? {
        body += &format!(
            "<section>\n<h2>Loss while training</h2>\n<figure class=\"lone\">{chart}</figure>\n</section>\n"
        );
    }
    if !page.samples.is_empty() {
        let samples: String = page.samples.iter().map(sample).collect();
        body += &format!(
            "<section>\n<h2>What they write</h2>\n<div class=\"samples\">{samples}</div>\n</section>\n"
        );
    }
    if !page.notes.is_empty() {
        let notes: String =
            page.notes.iter().map(|note| format!("<p class=\"quiet\">{}</p>\n", escape(note))).collect();
        body += &format!("<section>\n<h2>How it was measured</h2>\n{notes}</section>\n");
    }
    Ok(document(&page.title, &body))
}

/// A document: style within, no script, and a policy that forbids it to load anything. `body` is HTML.
pub(crate) fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(title),
        include_str!("page.css"),
    )
}

/// The charts of quality against each cost that was measured.
fn tradeoffs(measurements: &[Measurement]) -> Result<String> {
    let quality = Quality::of(measurements);
    let mut figures = String::new();
    for cost in Cost::ALL {
        if let Some(svg) = tradeoff_chart(measurements, quality, cost)? {
            let corner = if cost.more_is_better() { "right" } else { "left" };
            figures += &format!(
                "<figure>\n<h3>Quality against {}</h3>\n{svg}\n\
                 <figcaption>Better: down and to the {corner}.</figcaption>\n</figure>\n",
                cost.name()
            );
        }
    }
    if figures.is_empty() {
        return Ok(String::new());
    }
    Ok(format!(
        "<section>\n<h2>By each cost</h2>\n<p class=\"quiet\">Filled points are on the front: no other model is at least as \
         good in both and better in one. A point without a name carries its number in the table.</p>\n\
         <div class=\"charts\">\n{figures}</div>\n</section>\n"
    ))
}

fn sample(sample: &Sample) -> String {
    // The mark is underlined: it begins where the words do.
    let words = sample.continuation.trim();
    let gap = &sample.continuation[..sample.continuation.len() - sample.continuation.trim_start().len()];
    format!(
        "<figure>\n<h3>{}</h3>\n<blockquote><span class=\"given\">{}</span>{}<mark>{}</mark></blockquote>\n</figure>\n",
        escape(&sample.name),
        escape(&sample.prompt),
        escape(gap),
        escape(words)
    )
}

/// `text` as HTML text or attribute value: markup is shown, control characters that HTML forbids become U+FFFD.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(letter),
            letter if letter.is_control() => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}
