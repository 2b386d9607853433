//! The chart of losses over training tokens, a curve a run.

use super::axis::{Axis, Unit};
use super::canvas::{Canvas, DASHES, Ink, SERIES};
use super::page::escape;
use crate::Result;

/// The loss of one run as it went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossCurve {
    /// What the reader knows the run by.
    pub name: String,
    /// Training tokens so far, and the loss in nats per token; in rising order of tokens.
    pub points: Vec<(u64, f64)>,
}

/// Points of a curve that are drawn at most; longer ones are averaged in stretches.
const POINTS: usize = 400;

/// The chart with its legend, or none where no curve has a finite point. A value that is not finite is left out.
pub(crate) fn curves_chart(curves: &[LossCurve]) -> Result<Option<String>> {
    let drawn: Vec<(usize, Vec<(f64, f64)>)> = curves
        .iter()
        .take(SERIES)
        .enumerate()
        .map(|(number, curve)| (number, thinned(&curve.points)))
        .filter(|(_, points)| !points.is_empty())
        .collect();
    if drawn.is_empty() {
        return Ok(None);
    }
    let all = || drawn.iter().flat_map(|(_, points)| points.iter());
    let x = Axis::from_zero(all().map(|point| point.0).fold(0.0, f64::max), Unit::Count);
    let y = Axis::of(&all().map(|point| point.1).collect::<Vec<_>>(), Unit::Loss, false).with_whole_ticks();
    let ends: Vec<String> = drawn
        .iter()
        .map(|(number, points)| {
            let (first, last) = (points[0], points[points.len() - 1]);
            let tokens = Unit::Count.show(last.0);
            format!("{}: {:.3} to {:.3} after {tokens} tokens", curves[*number].name, first.1, last.1)
        })
        .collect();
    let title = "Loss while training";
    let svg = Canvas::draw("curves", title, &ends.join("; "), &[], |canvas| {
        canvas.frame(&x, &y, "training tokens", "loss, nats per token")?;
        for (number, points) in &drawn {
            let line: Vec<(f64, f64)> =
                points.iter().map(|&(tokens, loss)| (canvas.x(&x, tokens), canvas.y(&y, loss))).collect();
            canvas.line(&line, Ink::Series(*number), 2.0)?;
            canvas.point(line[line.len() - 1], 3.5, Ink::Series(*number), true)?;
        }
        Ok(())
    })?;
    Ok(Some(format!("{svg}\n{}", legend(curves, &drawn))))
}

fn legend(curves: &[LossCurve], drawn: &[(usize, Vec<(f64, f64)>)]) -> String {
    let entry = |number: usize, points: &[(f64, f64)]| {
        let (first, last) = (points[0].1, points[points.len() - 1].1);
        let dashes: Vec<String> = DASHES[number].iter().map(u32::to_string).collect();
        format!(
            "<li><svg viewBox=\"0 0 34 10\" aria-hidden=\"true\"><line x1=\"1\" y1=\"5\" x2=\"33\" y2=\"5\" \
             stroke=\"var(--series-{number})\" stroke-width=\"2.5\" stroke-dasharray=\"{}\"/></svg><span>{}<br><span class=\"quiet\">{} to {} nats</span></span></li>",
            dashes.join(" "),
            escape(&curves[number].name),
            Unit::Loss.show(first),
            Unit::Loss.show(last),
        )
    };
    format!(
        "<ul class=\"legend\">{}</ul>",
        drawn.iter().map(|(number, points)| entry(*number, points)).collect::<String>()
    )
}

/// The finite points, at most [`POINTS`] of them, each the mean of a stretch.
fn thinned(points: &[(u64, f64)]) -> Vec<(f64, f64)> {
    let finite: Vec<(f64, f64)> = points
        .iter()
        .filter(|point| point.1.is_finite())
        .map(|&(tokens, loss)| (tokens as f64, loss))
        .collect();
    let stretch = finite.len().div_ceil(POINTS).max(1);
    let mean = |chunk: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| {
        chunk.iter().map(of).sum::<f64>() / chunk.len() as f64
    };
    finite.chunks(stretch).map(|chunk| (mean(chunk, |point| point.0), mean(chunk, |point| point.1))).collect()
}
