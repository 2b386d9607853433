//! `luthier info ADAPTER`: what a LoRA adapter is, from its headers alone.

use luthier_checkpoint::adapter::{Adapter, Kind};
use serde::Serialize;

/// What an adapter is.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct AdapterInfo {
    /// PEFT's name of the kind.
    pub peft_type: String,
    /// The base that it names.
    pub base_model: Option<String>,
    /// r where no pattern says another.
    pub rank: usize,
    /// lora_alpha, likewise.
    pub alpha: f64,
    /// Whether the scale is alpha over the root of r.
    pub use_rslora: bool,
    /// Whether outputs are scaled to lengths.
    pub use_dora: bool,
    /// Values of all its tensors.
    pub parameters: usize,
    /// Bytes of all its tensors.
    pub size_bytes: usize,
    /// By path.
    pub modules: Vec<ModuleLine>,
    /// Weights of the base that it replaces.
    pub saved: Vec<String>,
    /// What to know.
    pub notes: Vec<String>,
}

/// One module.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[allow(missing_docs)]
pub struct ModuleLine {
    pub path: String,
    pub is_embedding: bool,
    pub rank: usize,
    pub scale: f64,
    pub n_in: usize,
    pub n_out: usize,
}

/// Describes an adapter.
pub fn run(adapter: &Adapter) -> AdapterInfo {
    let infos = adapter.tensors.infos();
    let module = |(path, module): (&String, &luthier_checkpoint::adapter::Module)| ModuleLine {
        path: path.clone(),
        is_embedding: module.kind == Kind::Embedding,
        rank: module.rank,
        scale: module.scale,
        n_in: module.n_in,
        n_out: module.n_out,
    };
    AdapterInfo {
        peft_type: "LORA".to_string(),
        base_model: adapter.config.base_model.clone(),
        rank: adapter.config.rank,
        alpha: adapter.config.alpha,
        use_rslora: adapter.config.use_rslora,
        use_dora: adapter.config.use_dora,
        parameters: infos.iter().map(|info| info.shape.iter().product::<usize>()).sum(),
        size_bytes: infos.iter().filter_map(|info| info.dtype.size_bytes(&info.shape)).sum(),
        modules: adapter.modules.iter().map(module).collect(),
        saved: adapter.saved.keys().cloned().collect(),
        notes: adapter.notes.clone(),
    }
}
