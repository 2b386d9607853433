//! What a calibration run tells of a model: the importance of every unit that surgery may remove. One safetensors file;
//! docs/formats.md lists its tensors and metadata.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use luthier_kernels::blocks::BlockType;
use luthier_kernels::pool;
use sha2::{Digest, Sha256};

use crate::layout::Layout;
use crate::safetensors::{SafetensorsFile, SafetensorsWriter};
use crate::{Dtype, Error, Output, Result, TensorInfo, TensorSink, TensorSource, lineage, values};

const FORMAT: &str = "luthier-scores";
const FORMAT_VERSION: &str = "1";

/// How values of many tokens become one score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// The mean of absolute values.
    Mean,
    /// The root of the sum of squares.
    L2,
}

impl Aggregation {
    /// Names in options and files.
    pub const NAMES: [&str; 2] = ["mean", "l2"];

    /// The aggregation of that name.
    pub fn from_name(name: &str) -> Option<Aggregation> {
        match name {
            "mean" => Some(Aggregation::Mean),
            "l2" => Some(Aggregation::L2),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Aggregation::Mean => "mean",
            Aggregation::L2 => "l2",
        }
    }
}

/// How scores were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreSettings {
    /// [`model_sha256`] of the model.
    pub model_sha256: String,
    /// SHA-256 of the text.
    pub text_sha256: String,
    /// Tokens that the model read.
    pub tokens: usize,
    /// Tokens of a window at most.
    pub window: usize,
    /// Over the tokens of a window.
    pub sequence: Aggregation,
    /// Over the windows.
    pub batch: Aggregation,
}

/// Scores by name, and how they were made.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// How they were made.
    pub settings: ScoreSettings,
    /// Vectors by name; see docs/formats.md.
    pub tensors: BTreeMap<String, Vec<f32>>,
}

impl Scores {
    /// The vector of that name, which has to be there with `len` values.
    pub fn get(&self, name: &str, len: usize) -> Result<&[f32]> {
        let missing = || Error::tensor(name, "is not in the scores; score this model again");
        let scores = self.tensors.get(name).ok_or_else(missing)?;
        if scores.len() != len {
            let what = format!("wanted {len} scores, found {}; score this model again", scores.len());
            return Err(Error::tensor(name, what));
        }
        Ok(scores)
    }

    /// Writes the file, whole or not at all. `inputs` are places that it must not replace.
    pub fn write(&self, path: &Path, force: bool, inputs: &[&Path]) -> Result<()> {
        let output = Output::file(path, force, inputs)?;
        let infos: Vec<TensorInfo> = self
            .tensors
            .iter()
            .map(|(name, scores)| TensorInfo {
                name: name.clone(),
                dtype: Dtype::F32,
                shape: vec![scores.len()],
            })
            .collect();
        let settings = &self.settings;
        let metadata = [
            ("format", FORMAT.to_string()),
            ("format_version", FORMAT_VERSION.to_string()),
            ("model_sha256", settings.model_sha256.clone()),
            ("text_sha256", settings.text_sha256.clone()),
            ("tokens", settings.tokens.to_string()),
            ("window", settings.window.to_string()),
            ("sequence_aggregation", settings.sequence.name().to_string()),
            ("batch_aggregation", settings.batch.name().to_string()),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_string(), value));
        let mut writer = SafetensorsWriter::create_file(output.path(), &infos, &metadata)?;
        for (name, scores) in &self.tensors {
            let bytes: Vec<u8> = scores.iter().flat_map(|score| score.to_le_bytes()).collect();
            writer.write(name, &bytes)?;
        }
        writer.finish()?;
        drop(writer);
        output.commit()
    }

    /// Reads a file of scores. Refuses files that are none, newer ones, and scores that are not finite or below 0.
    pub fn read(path: &Path) -> Result<Scores> {
        let wrong = |what: String| Error::format(path, what);
        let file = SafetensorsFile::open(path)?;
        let metadata: BTreeMap<&str, &str> =
            file.metadata().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let get = |key: &str| {
            let missing = || wrong(format!("no metadata key {key}; wanted a file that luthier score wrote"));
            metadata.get(key).copied().ok_or_else(missing)
        };
        if get("format")? != FORMAT {
            return Err(wrong(format!(
                "metadata key format: wanted {FORMAT}, found {:?}; give a file that luthier score wrote",
                get("format")?
            )));
        }
        if get("format_version")? != FORMAT_VERSION {
            let what = format!(
                "format_version is {}; this program reads {FORMAT_VERSION}, score the model again",
                get("format_version")?
            );
            return Err(wrong(what));
        }
        let number = |key: &str| {
            let text = get(key)?;
            text.parse::<usize>()
                .map_err(|_| wrong(format!("metadata key {key}: wanted a number, found {text:?}")))
        };
        let aggregation = |key: &str| {
            let name = get(key)?;
            let unknown = || wrong(format!("metadata key {key}: wanted mean or l2, found {name:?}"));
            Aggregation::from_name(name).ok_or_else(unknown)
        };
        let settings = ScoreSettings {
            model_sha256: get("model_sha256")?.to_string(),
            text_sha256: get("text_sha256")?.to_string(),
            tokens: number("tokens")?,
            window: number("window")?,
            sequence: aggregation("sequence_aggregation")?,
            batch: aggregation("batch_aggregation")?,
        };
        let mut tensors = BTreeMap::new();
        for info in file.infos() {
            if info.dtype != Dtype::Weights(BlockType::F32) || info.shape.len() != 1 {
                return Err(Error::tensor(
                    &info.name,
                    format!("of {}: wanted a vector of F32", path.display()),
                ));
            }
            let scores = values::to_f32(&info.name, info.dtype, &file.read(&info.name)?)?;
            if let Some(at) = scores.iter().position(|score| !score.is_finite()) {
                return Err(Error::tensor(
                    &info.name,
                    format!("score {at} of {} is not finite", path.display()),
                ));
            }
            tensors.insert(info.name.clone(), scores);
        }
        Ok(Scores { settings, tensors })
    }
}

/// A hash of a model's weights as they are stored, whatever files they lie in: SHA-256 over name, type, shape and SHA-256
/// of every tensor of the layout, by name.
pub fn model_sha256(layout: &Layout, tensors: &dyn TensorSource) -> Result<String> {
    let mut specs: Vec<&str> = layout.tensors.iter().map(|spec| spec.name.as_str()).collect();
    specs.sort_unstable();
    let infos: BTreeMap<&str, &TensorInfo> =
        tensors.infos().iter().map(|info| (info.name.as_str(), info)).collect();
    let hashes: Vec<Mutex<Option<Result<String>>>> = specs.iter().map(|_| Mutex::new(None)).collect();
    pool::run(specs.len(), &|at| {
        let hash = tensors.read(specs[at]).map(|bytes| lineage::sha256_of_bytes(&bytes));
        *hashes[at].lock().expect("nothing panics while it is held") = Some(hash);
    });
    let mut hasher = Sha256::new();
    for (name, hash) in specs.iter().zip(hashes) {
        let hash = hash.into_inner().expect("nothing panics while it is held").expect("every part ran")?;
        let info = infos.get(name).ok_or_else(|| Error::tensor(*name, "missing"))?;
        hasher.update(format!("{name} {} {:?} {hash}\n", info.dtype.name(), info.shape).as_bytes());
    }
    Ok(lineage::hex(&hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores() -> Scores {
        let settings = ScoreSettings {
            model_sha256: "aa".to_string(),
            text_sha256: "bb".to_string(),
            tokens: 12,
            window: 4,
            sequence: Aggregation::Mean,
            batch: Aggregation::L2,
        };
        let tensors = BTreeMap::from([("block_influence.decoder".to_string(), vec![0.5, 0.25])]);
        Scores { settings, tensors }
    }

    #[test]
    fn scores_are_read_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.safetensors");
        scores().write(&path, false, &[]).unwrap();
        let read = Scores::read(&path).unwrap();
        assert_eq!(read, scores());
        assert_eq!(read.get("block_influence.decoder", 2).unwrap(), [0.5, 0.25]);
        assert!(read.get("block_influence.decoder", 3).unwrap_err().to_string().contains("wanted 3 scores"));
        assert!(read.get("other", 3).unwrap_err().to_string().contains("not in the scores"));
        assert!(scores().write(&path, false, &[]).is_err());
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let metadata = SafetensorsWriter::pt_metadata();
        SafetensorsWriter::create_file(&path, &[], &metadata).unwrap().finish().unwrap();
        assert!(Scores::read(&path).unwrap_err().to_string().contains("luthier score wrote"));
        let mut damaged = scores();
        damaged.tensors.insert("x".to_string(), vec![f32::NAN]);
        let path = folder.path().join("damaged.safetensors");
        damaged.write(&path, false, &[]).unwrap();
        assert!(Scores::read(&path).unwrap_err().to_string().contains("not finite"));
    }
}
