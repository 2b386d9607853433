//! A grid of measurements as a page: one table, a row a cell, with bars behind its numbers.

use super::page::{document, escape};

/// Rows of texts under heads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grid {
    /// Of the columns.
    pub heads: Vec<String>,
    /// As long as the heads.
    pub rows: Vec<Vec<String>>,
}

impl Grid {
    /// For a terminal.
    pub fn as_text(&self) -> String {
        let all = || std::iter::once(&self.heads).chain(&self.rows);
        let widths: Vec<usize> = (0..self.heads.len())
            .map(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
            cells.join("  ") + "\n"
        };
        all().map(line).collect()
    }
}

/// The page; `lines` stand above the table, `notes` below.
pub fn grid_page(title: &str, lines: &[String], grid: &Grid, notes: &[String]) -> String {
    let paragraphs = |lines: &[String], class: &str| -> String {
        lines.iter().map(|line| format!("<p{class}>{}</p>\n", escape(line))).collect()
    };
    let heads: String = grid
        .heads
        .iter()
        .map(|head| format!("<th role=\"columnheader\" scope=\"col\">{}</th>", escape(head)))
        .collect();
    let most: Vec<f64> = (0..grid.heads.len())
        .map(|column| grid.rows.iter().filter_map(|row| number(&row[column])).fold(0.0, f64::max))
        .collect();
    let mut rows = String::new();
    for row in &grid.rows {
        rows += "<tr role=\"row\">";
        for ((cell, head), most) in row.iter().zip(&grid.heads).zip(&most) {
            // A fraction's digits tell a measured number.
            let measured = number(cell).filter(|_| cell.contains('.') && *most > 0.0);
            let bar = measured.map_or(String::new(), |value| {
                let share = value / most * 100.0;
                format!(
                    " style=\"background: linear-gradient(to left, var(--grid) {share:.1}%, transparent {share:.1}%)\""
                )
            });
            rows += &format!("<td role=\"cell\" data-label=\"{}\"{bar}>{}</td>", escape(head), escape(cell));
        }
        rows += "</tr>\n";
    }
    let body = format!(
        "<h1>{}</h1>\n{}<section aria-labelledby=\"numbers\">\n<h2 id=\"numbers\">Numbers</h2>\n\
         <div class=\"table\" role=\"region\" aria-labelledby=\"numbers\" tabindex=\"0\">\n\
         <table role=\"table\">\n<thead role=\"rowgroup\"><tr role=\"row\">{heads}</tr></thead>\n\
         <tbody role=\"rowgroup\">\n{rows}</tbody>\n</table>\n</div>\n\
         <p class=\"quiet\">Bars: of the most in a column. A dash: not measured, or as the program has it.</p>\n</section>\n\
         <section>\n<h2>How it was measured</h2>\n{}</section>\n",
        escape(title),
        paragraphs(lines, ""),
        paragraphs(notes, " class=\"quiet\"")
    );
    document(title, &body)
}

fn number(cell: &str) -> Option<f64> {
    cell.parse().ok().filter(|value: &f64| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_aligned_and_escaped() {
        let grid = Grid {
            heads: ["type", "tok/s"].map(String::from).to_vec(),
            rows: [["<Q8_0>", "5.0"], ["as it is", "10.0"]]
                .map(|row| row.map(String::from).to_vec())
                .to_vec(),
        };
        assert_eq!(grid.as_text(), "    type  tok/s\n  <Q8_0>    5.0\nas it is   10.0\n");
        let page = grid_page("A grid", &["One line.".to_string()], &grid, &[]);
        assert!(page.contains("&lt;Q8_0&gt;") && page.contains("50.0%") && !page.contains("http:"), "{page}");
    }
}
