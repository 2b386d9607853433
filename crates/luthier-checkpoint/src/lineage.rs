//! The record that is written last into an output: from what, by what and how it was made.
//!
//! docs/formats.md describes the file key by key. It holds no clock time and no place but those that the user gave.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::ledger::LedgerSummary;
use crate::mapped::MappedFile;
use crate::{Error, Gguf, Result, folder};

/// The record's name in a folder.
pub const LINEAGE_NAME: &str = "lineage.json";

/// The metadata key that holds the record in a GGUF file.
pub const LINEAGE_KEY: &str = "luthier.lineage";

/// The version of the record's form that this program writes. It reads 1 too, whose inputs have no record of their own.
pub const FORMAT_VERSION: u32 = 2;

/// The oldest version that is read.
const OLDEST_VERSION: u32 = 1;

/// What is mapped of a file at once to hash it.
const MAPPED_BYTES: usize = 4 << 20;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The version of the program that wrote it.
    pub luthier_version: String,
    /// What was done.
    pub verb: String,
    /// Every option with its value, defaults included.
    pub recipe: Value,
    /// Where every random number came from.
    pub seed: Option<u64>,
    /// The inputs.
    pub parents: Vec<Parent>,
    /// What became of each tensor.
    pub ledger: LedgerSummary,
    /// Numbers measured on the output, unit in the key; none that change from run to run.
    pub measurements: Map<String, Value>,
}

/// One input of a verb.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// As the user gave it.
    pub place: String,
    /// Every file that was read.
    pub files: Vec<FileHash>,
    /// The input's own record where it has one, so that it can be made again when it is gone.
    #[serde(default)]
    pub lineage: Option<Box<Lineage>>,
}

/// One file of an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileHash {
    /// Its name inside the input; the file's own for an input that is a file.
    pub name: String,
    /// Its length.
    pub size_bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

impl Lineage {
    /// A record of this version of the program, without measurements.
    pub fn new(
        verb: &str,
        recipe: Value,
        seed: Option<u64>,
        parents: Vec<Parent>,
        ledger: LedgerSummary,
    ) -> Lineage {
        Lineage {
            format_version: FORMAT_VERSION,
            luthier_version: env!("CARGO_PKG_VERSION").to_string(),
            verb: verb.to_string(),
            recipe,
            seed,
            parents,
            ledger,
            measurements: Map::new(),
        }
    }

    /// The text of lineage.json.
    pub fn to_text(&self) -> String {
        crate::json::to_text(self)
    }

    /// Parses a record. The error says what is wrong; the caller adds the file's name.
    pub fn parse(text: &[u8]) -> std::result::Result<Lineage, String> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let Version { format_version } =
            serde_json::from_slice(text).map_err(|problem| format!("lineage: {problem}"))?;
        if !(OLDEST_VERSION..=FORMAT_VERSION).contains(&format_version) {
            return Err(format!(
                "lineage format_version is {format_version}; this program reads {OLDEST_VERSION} to {FORMAT_VERSION}, \
                 use a newer one"
            ));
        }
        serde_json::from_slice(text).map_err(|problem| format!("lineage: {problem}"))
    }

    /// The record of a folder or a GGUF file; `None` where it has none.
    pub fn read(place: &Path) -> Result<Option<Lineage>> {
        let text = if place.is_dir() {
            let path = place.join(LINEAGE_NAME);
            if !path.exists() {
                return Ok(None);
            }
            folder::read_small(&path)?
        } else if crate::torch::is_torch_name(place) {
            // Such files carry no record.
            return Ok(None);
        } else {
            let gguf = Gguf::open(place)?;
            match gguf.get(LINEAGE_KEY) {
                None => return Ok(None),
                Some(value) => {
                    let text = value.as_str();
                    let what = || Error::format(place, format!("metadata key {LINEAGE_KEY} is no text"));
                    text.ok_or_else(what)?.as_bytes().to_vec()
                }
            }
        };
        Lineage::parse(&text).map(Some).map_err(|what| Error::format(place, what))
    }
}

impl Parent {
    /// Hashes every file of a model folder or of a GGUF model, or a single other file. `label` is the place as the user
    /// gave it.
    pub fn of_place(label: &str, place: &Path) -> Result<Parent> {
        Parent::with_hashes(label, place, sha256_of_file)
    }

    /// As [`Parent::of_place`], with 64 zeros for every hash, so that a record's length is known before its hashes are.
    pub fn of_place_without_hashes(label: &str, place: &Path) -> Result<Parent> {
        let blank = |path: &Path| match std::fs::metadata(path) {
            Ok(metadata) => Ok((metadata.len(), "0".repeat(64))),
            Err(source) => Err(Error::io(path, source)),
        };
        Parent::with_hashes(label, place, blank)
    }

    fn with_hashes(
        label: &str,
        place: &Path,
        hash: impl Fn(&Path) -> Result<(u64, String)>,
    ) -> Result<Parent> {
        let paths = folder::model_files(place)?;
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let inside = path.strip_prefix(place).ok().filter(|inside| !inside.as_os_str().is_empty());
            let name = inside.or(path.file_name().map(Path::new)).unwrap_or(&path);
            let (size_bytes, sha256) = hash(&path)?;
            files.push(FileHash { name: name.to_string_lossy().into_owned(), size_bytes, sha256 });
        }
        // A record that cannot be read only says less.
        let lineage = Lineage::read(place).unwrap_or(None).map(Box::new);
        Ok(Parent { place: label.to_string(), files, lineage })
    }

    /// Hashes files that lie in memory (the built-in model's).
    pub fn of_bytes(label: &str, files: &[(&str, &[u8])]) -> Parent {
        let hash = |(name, bytes): &(&str, &[u8])| FileHash {
            name: name.to_string(),
            size_bytes: bytes.len() as u64,
            sha256: sha256_of_bytes(bytes),
        };
        Parent { place: label.to_string(), files: files.iter().map(hash).collect(), lineage: None }
    }
}

/// Length and SHA-256 (lower-case hexadecimal) of a file, read in pieces.
pub fn sha256_of_file(path: &Path) -> Result<(u64, String)> {
    let mut hasher = Sha256::new();
    let metadata = std::fs::metadata(path).map_err(|source| Error::io(path, source))?;
    if !metadata.is_file() {
        return Err(Error::format(path, "wanted a file, found a folder, a pipe or a device"));
    }
    let mut file = File::open(path).map_err(|source| Error::io(path, source))?;
    if metadata.len() > MAPPED_BYTES as u64 {
        // Copying a large file out of the page cache takes half as long as hashing it.
        let mapped = MappedFile::open(path)?;
        let len = mapped.bytes().len();
        for start in (0..len).step_by(MAPPED_BYTES) {
            hasher.update(&mapped.share_now(start..len.min(start + MAPPED_BYTES))[..]);
        }
        return Ok((len as u64, hex(&hasher.finalize())));
    }
    let mut buffer = vec![0u8; 1 << 17];
    let mut size_bytes = 0;
    loop {
        match file.read(&mut buffer).map_err(|source| Error::io(path, source))? {
            0 => return Ok((size_bytes, hex(&hasher.finalize()))),
            n_read => {
                hasher.update(&buffer[..n_read]);
                size_bytes += n_read as u64;
            }
        }
    }
}

/// SHA-256 (lower-case hexadecimal) of bytes.
pub fn sha256_of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_is_read_back_as_written() {
        let parent = Parent::of_bytes("builtin", &[("config.json", b"abc")]);
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(parent.files[0].sha256, known);
        let mut lineage =
            Lineage::new("adapt", json!({"lr": 1e-6}), Some(3), vec![parent], Default::default());
        lineage.measurements.insert("loss_nats".to_string(), json!(2.5));
        assert_eq!(Lineage::parse(lineage.to_text().as_bytes()).unwrap(), lineage);
        assert_eq!(lineage.to_text(), Lineage::parse(lineage.to_text().as_bytes()).unwrap().to_text());
    }

    #[test]
    fn newer_and_broken_records_are_refused() {
        let text = Lineage::new("adapt", Value::Null, None, vec![], Default::default()).to_text();
        let newer = text.replace("\"format_version\": 2", "\"format_version\": 3");
        assert!(Lineage::parse(newer.as_bytes()).unwrap_err().contains("format_version is 3"));
        let unknown = text.replace("\"verb\"", "\"werb\"");
        assert!(Lineage::parse(unknown.as_bytes()).unwrap_err().contains("werb"));
        assert!(Lineage::parse(b"[]").is_err());
    }
}
