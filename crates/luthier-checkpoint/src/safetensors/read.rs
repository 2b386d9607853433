//! Mapped safetensors files as sources of tensors.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use luthier_kernels::bytes::SharedBytes;

use super::{Header, Index};
use crate::mapped::MappedFile;
use crate::torch::TorchFile;
use crate::{Error, Result, TensorInfo, TensorSource};

/// One file.
pub struct SafetensorsFile {
    map: Arc<MappedFile>,
    metadata: Vec<(String, String)>,
    infos: Vec<TensorInfo>,
    ranges: HashMap<String, Range<usize>>,
}

impl SafetensorsFile {
    /// Maps and checks a file.
    pub fn open(path: &Path) -> Result<SafetensorsFile> {
        let map = MappedFile::open(path)?;
        let header = Header::parse(map.bytes()).map_err(|what| Error::format(path, what))?;
        let ranges =
            header.entries.iter().map(|entry| (entry.info.name.clone(), entry.range.clone())).collect();
        let infos = header.entries.into_iter().map(|entry| entry.info).collect();
        Ok(SafetensorsFile { map, metadata: header.metadata, infos, ranges })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// `__metadata__`, in file order.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }
}

impl TensorSource for SafetensorsFile {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let range = self
            .ranges
            .get(name)
            .ok_or_else(|| Error::tensor(name, format!("is not in {}", self.path().display())))?;
        Ok(self.map.share(range.clone()))
    }

    fn read_part(&self, name: &str, part: Range<usize>) -> Result<SharedBytes> {
        let inside = |range: &&Range<usize>| part.start <= part.end && part.end <= range.len();
        let range = self.ranges.get(name).filter(inside).ok_or_else(|| {
            let what = format!("has no bytes {} to {} in {}", part.start, part.end, self.path().display());
            Error::tensor(name, what)
        })?;
        Ok(self.map.share(range.start + part.start..range.start + part.end))
    }
}

/// The shards of one model.
pub struct ShardedTensors {
    index_path: PathBuf,
    shards: Vec<Box<dyn TensorSource>>,
    paths: Vec<PathBuf>,
    infos: Vec<TensorInfo>,
    shard_of: HashMap<String, usize>,
}

impl ShardedTensors {
    /// Opens every shard that the index names; index and shards must agree on each tensor.
    pub fn open(index_path: &Path) -> Result<ShardedTensors> {
        ShardedTensors::open_of(index_path, ".safetensors", |path| Ok(Box::new(SafetensorsFile::open(path)?)))
    }

    /// The same for shards of PyTorch's own format.
    pub fn open_torch(index_path: &Path) -> Result<ShardedTensors> {
        ShardedTensors::open_of(index_path, ".bin", |path| Ok(Box::new(TorchFile::open(path)?)))
    }

    fn open_of(
        index_path: &Path,
        ending: &str,
        open: impl Fn(&Path) -> Result<Box<dyn TensorSource>>,
    ) -> Result<ShardedTensors> {
        let json = crate::folder::read_small(index_path)?;
        let index = Index::parse_of(&json, ending).map_err(|what| Error::format(index_path, what))?;
        let folder = index_path.parent().unwrap_or(Path::new("."));
        let (mut shards, mut paths) = (Vec::new(), Vec::new());
        for shard in index.shards() {
            let path = folder.join(shard);
            if !path.exists() {
                let what =
                    format!("names shard {shard}, which is not there; download it, or the model again");
                return Err(Error::format(index_path, what));
            }
            shards.push(open(&path)?);
            paths.push(path);
        }
        let numbers: HashMap<&str, usize> =
            index.shards().into_iter().enumerate().map(|(number, shard)| (shard, number)).collect();
        let held: Vec<HashSet<&str>> = shards
            .iter()
            .map(|shard| shard.infos().iter().map(|info| info.name.as_str()).collect())
            .collect();
        let mut shard_of = HashMap::new();
        for (tensor, shard) in &index.weight_map {
            let number = numbers[shard.as_str()];
            if !held[number].contains(tensor.as_str()) {
                return Err(Error::tensor(
                    tensor,
                    format!("{} says it is in {shard}, which does not hold it", index_path.display()),
                ));
            }
            shard_of.insert(tensor.clone(), number);
        }
        let mut infos = Vec::new();
        for (number, shard) in shards.iter().enumerate() {
            for info in shard.infos() {
                if shard_of.get(&info.name) != Some(&number) {
                    let what = format!("is in {}, but its index does not say so", paths[number].display());
                    return Err(Error::tensor(&info.name, what));
                }
                infos.push(info.clone());
            }
        }
        Ok(ShardedTensors { index_path: index_path.to_path_buf(), shards, paths, infos, shard_of })
    }

    /// The shards' files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.paths.iter().map(PathBuf::as_path)
    }
}

impl TensorSource for ShardedTensors {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let shard = self
            .shard_of
            .get(name)
            .ok_or_else(|| Error::tensor(name, format!("is not in {}", self.index_path.display())))?;
        self.shards[*shard].read(name)
    }

    fn read_part(&self, name: &str, range: Range<usize>) -> Result<SharedBytes> {
        match self.shard_of.get(name) {
            Some(shard) => self.shards[*shard].read_part(name, range),
            None => self.read(name),
        }
    }
}
