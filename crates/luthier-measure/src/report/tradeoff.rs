//! The chart of quality against one cost: a point a model, the front marked.

use plotters::style::text_anchor::HPos;

use super::axis::{Axis, Unit};
use super::canvas::{Canvas, Ink, PLOT, TEXT};
use super::labels::{Area, place, shortened};
use crate::Result;
use crate::frontier::{Cost, Quality, pareto_front};
use crate::measurements::Measurement;

/// Letters of a name in the chart; the table has it whole.
const NAME_LETTERS: usize = 22;
/// Size of a model's point.
const RADIUS: f64 = 6.0;

/// The chart's SVG element, or none where no model has both numbers. Models that have no name in it for want of room
/// have their number in the table.
pub(crate) fn tradeoff_chart(
    measurements: &[Measurement],
    quality: Quality,
    cost: Cost,
) -> Result<Option<String>> {
    let known: Vec<(usize, f64, f64)> = measurements
        .iter()
        .enumerate()
        .filter_map(|(number, one)| Some((number, cost.value(one)?, quality.value(one)?)))
        .collect();
    if known.is_empty() {
        return Ok(None);
    }
    let front = pareto_front(measurements, quality, cost);
    let x = Axis::of(&known.iter().map(|point| point.1).collect::<Vec<_>>(), cost.unit(), true);
    let y = Axis::of(&known.iter().map(|point| point.2).collect::<Vec<_>>(), quality.unit(), false);
    let title = format!("{} against {}", quality.title(), cost.name());
    let told = |number: usize, c: f64, q: f64| {
        format!(
            "{}: {}, {} {}",
            measurements[number].name,
            quality.unit().show(q),
            show(cost, c),
            cost.title()
        )
    };
    let place_of = |c: f64, q: f64| {
        let (width, height) = (PLOT.right - PLOT.left, PLOT.bottom - PLOT.top);
        (PLOT.left + x.position(c) * width, PLOT.bottom - y.position(q) * height)
    };
    let points: Vec<(f64, f64)> = known.iter().map(|&(_, c, q)| place_of(c, q)).collect();
    let tips: Vec<((f64, f64), String)> =
        known.iter().zip(&points).map(|(&(number, c, q), &at)| (at, told(number, c, q))).collect();
    let described: Vec<&str> = tips.iter().map(|(_, text)| text.as_str()).collect();
    let on_front: Vec<&str> = front.iter().map(|&number| measurements[number].name.as_str()).collect();
    let description = format!(
        "{}. On the front: {}. The table below has the numbers.",
        described.join("; "),
        on_front.join(", ")
    );
    let x_title = if x.is_log() { format!("{} (log scale)", cost.title()) } else { cost.title().to_string() };
    let svg = Canvas::draw(&format!("by-{}", cost.key()), &title, &description, &tips, |canvas| {
        canvas.frame(&x, &y, &x_title, quality.title())?;
        let front_points: Vec<(f64, f64)> = front
            .iter()
            .filter_map(|number| known.iter().position(|point| point.0 == *number).map(|at| points[at]))
            .collect();
        let stairs = stairs(&front_points, cost.more_is_better());
        canvas.line(&stairs, Ink::Accent, 1.5)?;
        for (&(number, _, _), &at) in known.iter().zip(&points) {
            let is_front = front.contains(&number);
            canvas.point(at, RADIUS, if is_front { Ink::Accent } else { Ink::Muted }, is_front)?;
        }
        let texts: Vec<Vec<String>> = known
            .iter()
            .map(|(number, _, _)| {
                let name = &measurements[*number].name;
                vec![
                    shortened(name, NAME_LETTERS),
                    shortened(name, NAME_LETTERS / 2),
                    (number + 1).to_string(),
                ]
            })
            .collect();
        let inside = Area { left: PLOT.left + 2.0, ..PLOT };
        let lines: Vec<Area> = stairs.windows(2).map(|ends| around(ends[0], ends[1])).collect();
        for (text, left, middle) in place(&points, &texts, &lines, inside, TEXT, RADIUS).into_iter().flatten()
        {
            canvas.text(&text, (left, middle), HPos::Left, Ink::Text)?;
        }
        Ok(())
    })?;
    Ok(Some(svg))
}

/// The front as stairs: what is reached up to each cost. points: from left to right. With a cost where more is better,
/// quality holds to the left of a point.
fn stairs(points: &[(f64, f64)], more_is_better: bool) -> Vec<(f64, f64)> {
    let mut line: Vec<(f64, f64)> = Vec::new();
    for &(x, y) in points {
        if let Some(&(last_x, last_y)) = line.last() {
            line.push(if more_is_better { (last_x, y) } else { (x, last_y) });
        }
        line.push((x, y));
    }
    line
}

/// The room of a line along an axis.
fn around(from: (f64, f64), to: (f64, f64)) -> Area {
    Area {
        left: from.0.min(to.0) - 1.0,
        top: from.1.min(to.1) - 1.0,
        right: from.0.max(to.0) + 1.0,
        bottom: from.1.max(to.1) + 1.0,
    }
}

fn show(cost: Cost, value: f64) -> String {
    match cost.unit() {
        Unit::Rate => format!("{value:.0}"),
        unit => unit.show(value),
    }
}
