//! Where the texts of a corpus lie, and what of them is a document.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Result, TextError};

/// One source of documents: a path, or a column of a table.
///
/// - a path: a `.jsonl` file gives the `text` of each line as a document; any other file is one document, or,
///   where it holds form feeds, one for each part between them.
/// - `{file: x.tsv, column: 1, header: false}`: each row's field is a document; columns count from 0, `header`
///   says that the first row holds names (then `column` may be one of them). Empty fields give none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a file name, or {file: table.tsv, column: 1}")]
pub enum Source {
    /// A text file or a `.jsonl` file.
    File(PathBuf),
    /// A column of a tab-separated file.
    Column(ColumnSource),
}

/// See [`Source`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnSource {
    /// The tab-separated file.
    pub file: PathBuf,
    /// Which column.
    pub column: Column,
    /// Whether the first row holds the columns' names.
    #[serde(default)]
    pub header: bool,
    /// Whether the rows are paragraphs of one document, for tables whose rows follow one another; a row that repeats
    /// an earlier one is then left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub join: bool,
}

/// A column by its number, from 0, or by its name in the header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Column {
    /// Counted from 0.
    Number(usize),
    /// As the first row spells it.
    Name(String),
}

impl Source {
    /// The file that is read.
    pub fn path(&self) -> &Path {
        match self {
            Source::File(path) => path,
            Source::Column(column) => &column.file,
        }
    }
}

/// The documents of one source, in the file's order; blank ones are left out. Errors name the file and, for
/// bytes that are not UTF-8, the place; for rows and lines, their number from 1.
pub fn read(source: &Source) -> Result<Vec<String>> {
    documents_of(source, &read_text(source.path())?)
}

/// As [`read`], of a source whose text has been read already.
pub fn documents_of(source: &Source, text: &str) -> Result<Vec<String>> {
    let documents: Vec<String> = match source {
        Source::Column(column) => column_of(text, column)?,
        Source::File(path) if path.extension().is_some_and(|ending| ending == "jsonl") => {
            json_lines(text, &path.display().to_string())?
        }
        Source::File(_) => text.split('\u{c}').map(str::to_owned).collect(),
    };
    Ok(documents.into_iter().filter(|document| !document.trim().is_empty()).collect())
}

/// The documents of all sources, one after the other. Refuses a corpus without any.
pub fn read_all(sources: &[Source]) -> Result<Vec<String>> {
    let mut documents = Vec::new();
    for source in sources {
        documents.extend(read(source)?);
    }
    if documents.is_empty() {
        let names: Vec<String> = sources.iter().map(|source| source.path().display().to_string()).collect();
        return Err(TextError::Corpus(format!("no text in {}", names.join(", "))));
    }
    Ok(documents)
}

/// A file as UTF-8, without a byte order mark.
fn read_text(path: &Path) -> Result<String> {
    let file = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| TextError::Io { file: file.clone(), source })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        TextError::NotUtf8 { file, offset, byte: error.as_bytes().get(offset).copied().unwrap_or_default() }
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn json_lines(text: &str, file: &str) -> Result<Vec<String>> {
    let mut documents = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let broken = |reason: String| TextError::broken(file, format!("line {number}: {reason}"));
        let row: serde_json::Value = serde_json::from_str(line).map_err(|error| broken(error.to_string()))?;
        let text = row.get("text").and_then(serde_json::Value::as_str);
        documents.push(text.ok_or_else(|| broken("wanted an object with a \"text\"".to_owned()))?.to_owned());
    }
    Ok(documents)
}

fn column_of(text: &str, source: &ColumnSource) -> Result<Vec<String>> {
    let file = source.file.display().to_string();
    let mut rows = (1..).zip(text.lines());
    let names: Option<Vec<&str>> =
        if source.header { rows.next().map(|(_, line)| line.split('\t').collect()) } else { None };
    let column = match (&source.column, &names) {
        (Column::Number(number), _) => *number,
        (Column::Name(name), Some(names)) => {
            let place = names.iter().position(|candidate| candidate == name);
            place.ok_or_else(|| {
                TextError::broken(&file, format!("no column {name:?}; its columns are {}", names.join(", ")))
            })?
        }
        (Column::Name(name), None) => {
            let reason =
                format!("column {name:?} is a name, so the source needs header: true; columns count from 0");
            return Err(TextError::broken(&file, reason));
        }
    };
    let mut documents = Vec::new();
    for (number, line) in rows.filter(|(_, line)| !line.is_empty()) {
        let field = line.split('\t').nth(column).ok_or_else(|| {
            let came = line.split('\t').count();
            TextError::broken(
                &file,
                format!("row {number}: wanted column {column} (from 0), came {came} columns"),
            )
        })?;
        documents.push(field);
    }
    if source.join {
        let mut seen = HashSet::new();
        documents.retain(|field| !field.trim().is_empty() && seen.insert(field.trim()));
        return Ok(vec![documents.join("\n\n")]);
    }
    Ok(documents.into_iter().map(str::to_owned).collect())
}
