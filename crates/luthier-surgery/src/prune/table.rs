//! Published tables of sub-models, one a row (`name`, `# Layers`, `# Effective Params (B)`, `FFN Hidden Dims`, `Layers
//! Skipped`), as CSV, TSV or Markdown; and lists of numbers as such tables write them.

/// One sub-model of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Width of every feed-forward block.
    pub ffn: Vec<usize>,
    /// Layers that are left out.
    pub skipped: Vec<usize>,
    /// Layers that are left, where the table says it.
    pub layers: Option<usize>,
}

/// Longest list that is read.
const MAX_LIST: usize = 1 << 12;

/// The row of that name. An error says which there are, or what cannot be read.
pub fn row(text: &str, name: &str) -> Result<Row, String> {
    let mut rows = rows(text).into_iter();
    let header = rows.next().ok_or("wanted a table with a line of column names")?;
    let column = |wanted: &str| header.iter().position(|cell| cell.eq_ignore_ascii_case(wanted));
    let needed = |wanted: &str| {
        column(wanted).ok_or_else(|| format!("no column {wanted}; the table has {}", header.join(", ")))
    };
    let (names, ffn) = (needed("name")?, needed("FFN Hidden Dims")?);
    let rows: Vec<Vec<String>> = rows.collect();
    let cell =
        |row: &[String], at: usize| row.get(at).map(|cell| cell.trim().to_string()).unwrap_or_default();
    let Some(found) = rows.iter().find(|row| cell(row, names) == name) else {
        let known: Vec<String> = rows.iter().map(|row| cell(row, names)).collect();
        return Err(format!("no row {name}; the table has {}", known.join(", ")));
    };
    let in_column = |what: &'static str| move |problem: String| format!("row {name}, {what}: {problem}");
    let optional = |wanted: &str| column(wanted).map(|at| cell(found, at)).filter(|cell| !is_none(cell));
    let skipped = match optional("Layers Skipped") {
        Some(cell) => list(&cell).map_err(in_column("Layers Skipped"))?,
        None => Vec::new(),
    };
    let layers = match optional("# Layers") {
        Some(cell) => Some(
            cell.parse::<usize>()
                .map_err(|_| format!("wanted a number, came {cell}"))
                .map_err(in_column("# Layers"))?,
        ),
        None => None,
    };
    let ffn = list(&cell(found, ffn)).map_err(in_column("FFN Hidden Dims"))?;
    if layers.is_some_and(|layers| ffn.len() > 1 && layers != ffn.len()) {
        let what = format!(
            "row {name}: # Layers is {}, FFN Hidden Dims has {} entries",
            layers.unwrap_or(0),
            ffn.len()
        );
        return Err(what);
    }
    Ok(Row { ffn, skipped, layers })
}

fn is_none(cell: &str) -> bool {
    ["", "-", "[]", "none", "nan", "null", "n/a"].contains(&cell.to_ascii_lowercase().as_str())
}

/// The cells of a table; the rules under a Markdown header are left out.
fn rows(text: &str) -> Vec<Vec<String>> {
    let text = text.trim_start_matches('\u{feff}');
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if first.trim_start().starts_with('|') {
        let lines = text.lines().map(str::trim).filter(|line| line.starts_with('|'));
        let cells = lines.map(|line| {
            let inside = line.trim_start_matches('|');
            let inside = inside.strip_suffix('|').unwrap_or(inside);
            inside.split('|').map(|cell| cell.trim().trim_matches('`').to_string()).collect::<Vec<_>>()
        });
        let is_rule = |cells: &Vec<String>| {
            cells.iter().all(|cell| !cell.is_empty() && cell.bytes().all(|byte| b"-: ".contains(&byte)))
        };
        return cells.filter(|cells| !is_rule(cells)).collect();
    }
    separated(text, if first.contains('\t') { '\t' } else { ',' })
}

/// Cells between separators; within quotes separators and line ends are part of a cell, and two quotes are one (RFC 4180).
fn separated(text: &str, separator: char) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                cell.push('"');
                characters.next();
            }
            '"' => quoted = !quoted,
            '\r' if !quoted => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            other if other == separator && !quoted => row.push(std::mem::take(&mut cell)),
            other => cell.push(other),
        }
    }
    row.push(cell);
    rows.push(row);
    rows.retain(|row| row.iter().any(|cell| !cell.trim().is_empty()));
    rows.iter_mut().flatten().for_each(|cell| *cell = cell.trim().to_string());
    rows
}

/// Numbers between commas, with or without brackets, or as tables write long lists: `[2_048 * 4] * 10 + [8192, 4096]`.
pub fn list(text: &str) -> Result<Vec<usize>, String> {
    let plain = text.trim();
    let whole = if plain.starts_with('[') || plain.starts_with('(') {
        plain.to_string()
    } else {
        format!("[{plain}]")
    };
    let mut parser = Parser { rest: whole.chars().collect(), at: 0, depth: 0 };
    let value = parser.sum().map_err(|problem| format!("{problem} in {text:?}"))?;
    match (value, parser.peek()) {
        (_, Some(character)) => Err(format!("{character:?} where nothing was wanted in {text:?}")),
        (Value::List(list), None) if !list.is_empty() => Ok(list),
        _ => Err(format!("wanted numbers between commas, came {text:?}")),
    }
}

enum Value {
    Number(usize),
    List(Vec<usize>),
}

struct Parser {
    rest: Vec<char>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&mut self) -> Option<char> {
        while self.rest.get(self.at).is_some_and(|character| character.is_whitespace()) {
            self.at += 1;
        }
        self.rest.get(self.at).copied()
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn sum(&mut self) -> Result<Value, String> {
        let mut value = self.product()?;
        while self.take('+') {
            value = match (value, self.product()?) {
                (Value::Number(a), Value::Number(b)) => {
                    Value::Number(a.checked_add(b).ok_or("too large a number")?)
                }
                (Value::List(mut a), Value::List(b)) => {
                    a.extend(b);
                    Value::List(short(a)?)
                }
                _ => return Err("a number and a list cannot be added".to_string()),
            };
        }
        Ok(value)
    }

    fn product(&mut self) -> Result<Value, String> {
        let mut value = self.atom()?;
        while self.take('*') {
            value = match (value, self.atom()?) {
                (Value::Number(a), Value::Number(b)) => {
                    Value::Number(a.checked_mul(b).ok_or("too large a number")?)
                }
                (Value::List(list), Value::Number(times)) | (Value::Number(times), Value::List(list)) => {
                    if times.checked_mul(list.len()).is_none_or(|len| len > MAX_LIST) {
                        return Err(format!("a list of more than {MAX_LIST}"));
                    }
                    Value::List(list.repeat(times))
                }
                _ => return Err("two lists cannot be multiplied".to_string()),
            };
        }
        Ok(value)
    }

    fn atom(&mut self) -> Result<Value, String> {
        match self.peek() {
            Some(open @ ('[' | '(')) => {
                self.at += 1;
                self.depth += 1;
                if self.depth > 16 {
                    return Err("brackets too deep".to_string());
                }
                let value = if open == '[' { self.entries()? } else { self.sum()? };
                self.depth -= 1;
                let close = if open == '[' { ']' } else { ')' };
                if self.take(close) { Ok(value) } else { Err(format!("no {close:?} for {open:?}")) }
            }
            Some(character) if character.is_ascii_digit() => self.number(),
            Some(character) => Err(format!("{character:?} where a number was wanted")),
            None => Err("nothing where a number was wanted".to_string()),
        }
    }

    fn entries(&mut self) -> Result<Value, String> {
        let mut list = Vec::new();
        while self.peek().is_some_and(|character| character != ']') {
            match self.sum()? {
                Value::Number(number) => list.push(number),
                Value::List(more) => list.extend(more),
            }
            list = short(list)?;
            if !self.take(',') {
                break;
            }
        }
        Ok(Value::List(list))
    }

    fn number(&mut self) -> Result<Value, String> {
        let mut digits = String::new();
        while let Some(character) =
            self.rest.get(self.at).filter(|character| character.is_ascii_digit() || **character == '_')
        {
            digits.push(*character);
            self.at += 1;
        }
        let digits = digits.replace('_', "");
        digits.parse().map(Value::Number).map_err(|_| format!("{digits} is too large a number"))
    }
}

fn short(list: Vec<usize>) -> Result<Vec<usize>, String> {
    if list.len() > MAX_LIST { Err(format!("a list of more than {MAX_LIST}")) } else { Ok(list) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_are_read_as_they_are_written() {
        for (text, wanted) in [
            ("8", vec![8]),
            ("8, 4,2", vec![8, 4, 2]),
            ("[8192, 4_096]", vec![8192, 4096]),
            ("[2_048 * 4] * 2 + [2048 * 8] * 1", vec![8192, 8192, 16384]),
            ("([1] + [2]) * 2", vec![1, 2, 1, 2]),
            ("[1, 2,]", vec![1, 2]),
        ] {
            assert_eq!(list(text).unwrap(), wanted, "{text}");
        }
        for wrong in
            ["", "[]", "a", "1,,2", "[1", "1]", "[1] * [2]", "[1] + 2", "-3", "[1] * 99999999", "1.5"]
        {
            assert!(list(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tables_of_every_kind_give_the_same_row() {
        let csv = "name,# Layers,# Effective Params (B),MMLU PT accuracy,FFN Hidden Dims,Layers Skipped\n\
                   Main model,4,3.98,62.3,\"[64, 64, 64, 64]\",\n\"Config \"\"2\"\"\",3,1.91,50.9,\"[32] * 2 + [64]\",\"[2]\"\n";
        let tsv = "name\t# Layers\tFFN Hidden Dims\tLayers Skipped\nMain model\t4\t[64, 64, 64, 64]\tNone\nConfig \"\"2\"\"\t3\t32, 32, 64\t2\n";
        let markdown = "| name | # Layers | FFN Hidden Dims | Layers Skipped |\n|---|:--|---|---|\n| Main model | 4 | `[64] * 4` | - |\n\
                        | Config 2 | 3 | [32, 32, 64] | [2] |\n";
        let whole = Row { ffn: vec![64; 4], skipped: vec![], layers: Some(4) };
        let cut = Row { ffn: vec![32, 32, 64], skipped: vec![2], layers: Some(3) };
        assert_eq!(row(csv, "Main model"), Ok(whole.clone()));
        assert_eq!(row(csv, "Config \"2\""), Ok(cut.clone()));
        assert_eq!(row(tsv, "Main model"), Ok(whole.clone()));
        assert_eq!(row(markdown, "Main model"), Ok(whole));
        assert_eq!(row(markdown, "Config 2"), Ok(cut));
    }

    #[test]
    fn what_a_table_lacks_is_named() {
        let table = "name,# Layers,FFN Hidden Dims\na,2,\"[8, 8]\"\nb,3,\"[8, 8]\"\nc,2,\"[x]\"\n";
        assert!(row(table, "d").unwrap_err().contains("a, b, c"));
        assert!(row(table, "b").unwrap_err().contains("has 2 entries"));
        assert!(row(table, "c").unwrap_err().contains("FFN Hidden Dims"));
        assert!(row("name,x\n", "a").unwrap_err().contains("no column FFN Hidden Dims"));
        assert!(row("", "a").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}", name in "[a-c]") {
            let _ = list(&text);
            let _ = row(&text, &name);
            let _ = row(&format!("name,FFN Hidden Dims\n{name},{text}\n"), &name);
        }

        #[test]
        fn lists_come_back(numbers in proptest::collection::vec(0usize..100_000, 1..20)) {
            prop_assert_eq!(list(&format!("{numbers:?}")).unwrap(), numbers);
        }
    }
}
