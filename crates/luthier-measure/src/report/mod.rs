//! Results as one self-contained HTML page: charts, table, samples; nothing is loaded from anywhere.

mod axis;
mod canvas;
mod curves;
mod flame;
mod grid;
mod labels;
mod page;
mod table;
mod tradeoff;

pub use axis::Unit;
pub use curves::LossCurve;
pub use flame::profile_page;
pub use grid::{Grid, grid_page};
pub use page::{Page, Sample, render_page};
