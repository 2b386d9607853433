//! Results as one self-contained HTML page: charts, table, samples; nothing is loaded from anywhere.

mod axis;
mod canvas;
mod curves;
mod labels;
mod page;
mod table;
mod tradeoff;

pub use axis::Unit;
pub use curves::LossCurve;
pub use page::{Page, Sample, render_page};
