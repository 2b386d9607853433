//! A chart's frame on plotters: plot area, grid, ticks, titles; colours as CSS variables of the page.

use plotters::backend::SVGBackend;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Axis;
use super::labels::Area;
use super::page::escape;
use crate::{Error, Result};

/// Width of a chart in its own units; the page scales it.
pub(crate) const WIDTH: f64 = 400.0;
/// Height of a chart.
pub(crate) const HEIGHT: f64 = 300.0;
/// Size of text in a chart.
pub(crate) const TEXT: f64 = 13.0;
/// Where the data are drawn.
pub(crate) const PLOT: Area = Area { left: 58.0, top: 34.0, right: WIDTH - 14.0, bottom: HEIGHT - 50.0 };

/// plotters counts whole pixels: this many of them make one unit, so that curves are not drawn in steps.
const FINE: f64 = 16.0;

/// A colour of the page's style sheet. Drawn as a colour that stands for it and is replaced at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ink {
    /// Text.
    Text,
    /// Grid lines.
    Grid,
    /// What a chart stands on.
    Ground,
    /// The front.
    Accent,
    /// What is not on the front.
    Muted,
    /// A curve, from 0.
    Series(usize),
}

/// Curves that have a look of their own.
pub(crate) const SERIES: usize = 6;
/// Dashes of each curve, in units; the first is solid.
pub(crate) const DASHES: [&[u32]; SERIES] = [&[], &[7, 4], &[2, 3], &[10, 3, 2, 3], &[4, 2], &[12, 5]];

impl Ink {
    const NAMED: [(Ink, &'static str); 5] = [
        (Ink::Text, "text"),
        (Ink::Grid, "grid"),
        (Ink::Ground, "card"),
        (Ink::Accent, "accent"),
        (Ink::Muted, "muted"),
    ];

    fn placeholder(self) -> RGBColor {
        match self {
            Ink::Series(number) => RGBColor(1, 2, (number % SERIES) as u8),
            named => {
                let number = Ink::NAMED.iter().position(|(ink, _)| *ink == named).unwrap_or(0);
                RGBColor(1, 1, number as u8)
            }
        }
    }
}

/// A chart being drawn. Coordinates are units from the top left.
pub(crate) struct Canvas<'a> {
    area: DrawingArea<SVGBackend<'a>, Shift>,
    title: String,
}

impl Canvas<'_> {
    /// Draws a chart of `title` with `draw`; gives the SVG element. `description` is for who cannot see it, `tips` are
    /// points with what they tell when pointed at, `id` is unique in the page.
    pub(crate) fn draw(
        id: &str,
        title: &str,
        description: &str,
        tips: &[((f64, f64), String)],
        draw: impl FnOnce(&Canvas) -> Result<()>,
    ) -> Result<String> {
        let mut svg = String::new();
        {
            let size = ((WIDTH * FINE) as u32, (HEIGHT * FINE) as u32);
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            let canvas = Canvas { area, title: title.to_string() };
            draw(&canvas)?;
            canvas.check(canvas.area.present())?;
        }
        Ok(finish(&svg, id, title, description, tips))
    }

    /// Grid, ticks and titles. `y_title` stands over the plot, `x_title` under it.
    pub(crate) fn frame(&self, x: &Axis, y: &Axis, x_title: &str, y_title: &str) -> Result<()> {
        for (value, label) in &y.ticks {
            let at = self.y(y, *value);
            self.line(&[(PLOT.left, at), (PLOT.right, at)], Ink::Grid, 1.0)?;
            self.text(label, (PLOT.left - 8.0, at), HPos::Right, Ink::Text)?;
        }
        let mut free_from = 0.0;
        for (value, label) in &x.ticks {
            let at = self.x(x, *value);
            self.line(&[(at, PLOT.top), (at, PLOT.bottom)], Ink::Grid, 1.0)?;
            let half = label.chars().count() as f64 * TEXT * 0.3;
            let middle = at.min(WIDTH - 2.0 - half);
            if middle - half >= free_from {
                self.text(label, (middle, PLOT.bottom + 14.0), HPos::Center, Ink::Text)?;
                free_from = middle + half + 6.0;
            }
        }
        self.text(y_title, (4.0, 14.0), HPos::Left, Ink::Text)?;
        self.text(x_title, ((PLOT.left + PLOT.right) / 2.0, HEIGHT - 12.0), HPos::Center, Ink::Text)
    }

    /// Where `value` lies from left to right.
    pub(crate) fn x(&self, axis: &Axis, value: f64) -> f64 {
        PLOT.left + axis.position(value) * (PLOT.right - PLOT.left)
    }

    /// Where `value` lies from top to bottom.
    pub(crate) fn y(&self, axis: &Axis, value: f64) -> f64 {
        PLOT.bottom - axis.position(value) * (PLOT.bottom - PLOT.top)
    }

    /// A line through `points`.
    pub(crate) fn line(&self, points: &[(f64, f64)], ink: Ink, width: f64) -> Result<()> {
        let style = ink.placeholder().stroke_width((width * FINE) as u32);
        let points: Vec<(i32, i32)> = points.iter().copied().map(fine).collect();
        self.check(self.area.draw(&PathElement::new(points, style)))
    }

    /// A disc, or a ring where it is not `filled`.
    pub(crate) fn point(&self, at: (f64, f64), radius: f64, ink: Ink, filled: bool) -> Result<()> {
        let disc = |ink: Ink, radius: f64| {
            self.area.draw(&Circle::new(fine(at), (radius * FINE) as i32, ink.placeholder().filled()))
        };
        self.check(disc(ink, radius))?;
        if !filled {
            self.check(disc(Ink::Ground, radius - 1.75))?;
        }
        Ok(())
    }

    /// A line of text; `at` is its middle in height and its `anchor` in width.
    pub(crate) fn text(&self, text: &str, at: (f64, f64), anchor: HPos, ink: Ink) -> Result<()> {
        // The SVG backend divides a font's size by 1.24.
        let colour = ink.placeholder();
        let style = TextStyle::from(("sans-serif", TEXT * FINE * 1.24).into_font())
            .color(&colour)
            .pos(Pos::new(anchor, VPos::Center));
        self.check(self.area.draw(&Text::new(text.to_string(), fine(at), style)))
    }

    fn check<E: std::error::Error + Send + Sync>(
        &self,
        result: std::result::Result<(), DrawingAreaErrorKind<E>>,
    ) -> Result<()> {
        result.map_err(|error| Error::Chart { title: self.title.clone(), reason: error.to_string() })
    }
}

fn fine((x, y): (f64, f64)) -> (i32, i32) {
    ((x * FINE).round() as i32, (y * FINE).round() as i32)
}

/// plotters' SVG with a name, a description and tips, scaled by its container, its colours the page's. Attributes only
/// are touched: in text, quotes are escaped.
fn finish(svg: &str, id: &str, title: &str, description: &str, tips: &[((f64, f64), String)]) -> String {
    let body = svg.split_once('>').map_or("", |(_, body)| body);
    let mut body = body.trim_end().trim_end_matches("</svg>").to_string();
    for (number, (_, name)) in Ink::NAMED.iter().enumerate() {
        body = body.replace(&format!("=\"#0101{number:02X}\""), &format!("=\"var(--{name})\""));
    }
    for (number, dashes) in DASHES.iter().enumerate() {
        let colour = format!("=\"#0102{number:02X}\"");
        let dashes: Vec<String> = dashes.iter().map(|dash| (f64::from(*dash) * FINE).to_string()).collect();
        let stroke = format!("stroke=\"var(--series-{number})\" stroke-dasharray=\"{}\"", dashes.join(" "));
        let stroke = if dashes.is_empty() { format!("stroke=\"var(--series-{number})\"") } else { stroke };
        body = body.replace(&format!("stroke{colour}"), &stroke);
        body = body.replace(&colour, &format!("=\"var(--series-{number})\""));
    }
    let tips: String = tips
        .iter()
        .map(|(at, text)| {
            let (x, y) = fine(*at);
            let radius = 12.0 * FINE;
            format!(
                "<circle class=\"tip\" cx=\"{x}\" cy=\"{y}\" r=\"{radius}\"><title>{}</title></circle>\n",
                escape(text)
            )
        })
        .collect();
    format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-labelledby=\"{id}-title {id}-desc\">\n\
         <title id=\"{id}-title\">{}</title>\n<desc id=\"{id}-desc\">{}</desc>\n{body}{tips}</svg>",
        WIDTH * FINE,
        HEIGHT * FINE,
        escape(title),
        escape(description),
    )
}
