//! GGUF models in several files, as llama-gguf-split writes them: `name-00001-of-00003.gguf` and so on, the metadata in
//! the first. `split.no` (from 0), `split.count` and `split.tensors.count` say what belongs together.

use std::path::{Path, PathBuf};

use super::GgufValue;

/// What a header says of the whole that its file is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// Which part, counted from 0.
    pub(super) number: usize,
    /// How many parts there are, 2 at least.
    pub(super) count: usize,
    /// Tensors of all parts together, where the file says it.
    pub(super) n_tensors: Option<usize>,
}

impl Split {
    /// `None` for a file that is whole.
    pub(super) fn of(metadata: &[(String, GgufValue)]) -> Result<Option<Split>, String> {
        let number = |key: &str| {
            let Some((_, value)) = metadata.iter().find(|(name, _)| name == key) else { return Ok(None) };
            let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
            number.map(Some).ok_or_else(|| format!("metadata key {key} is {value:?}; wanted a count"))
        };
        let Some(count) = number("split.count")?.filter(|&count| count > 1) else { return Ok(None) };
        if count > usize::from(u16::MAX) {
            return Err(format!("metadata key split.count is {count}; wanted {} at most", u16::MAX));
        }
        let part = number("split.no")?.unwrap_or(0);
        Ok(Some(Split { number: part, count, n_tensors: number("split.tensors.count")? }))
    }

    /// The files of all parts, from the first one's. The error says what is wrong with `first`.
    pub(super) fn paths(self, first: &Path) -> Result<Vec<PathBuf>, String> {
        let Split { number, count, .. } = self;
        let name = first.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let prefix = name.strip_suffix(&ending(number, count));
        if number != 0 {
            let first = prefix.map_or(String::new(), |prefix| format!(": {prefix}{}", ending(0, count)));
            return Err(format!("is part {} of {count}; give the first one{first}", number + 1));
        }
        let prefix = prefix.ok_or_else(|| {
            let ending = ending(0, count);
            format!(
                "is the first of {count} parts; its name must end in {ending}, so that the others are found"
            )
        })?;
        Ok((0..count).map(|part| first.with_file_name(format!("{prefix}{}", ending(part, count)))).collect())
    }
}

/// What the name of a part ends in.
fn ending(number: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", number + 1)
}
