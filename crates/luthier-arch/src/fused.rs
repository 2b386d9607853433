//! Folders that hold all experts of a layer in one tensor, as transformers 5 has them in memory and writes them with
//! `save_original_format=False`, seen as folders that hold each expert's matrices on their own.
//!
//! `layers.N.mlp.experts.gate_up_proj` is [e, 2 f, m], each expert's gate above its up projection;
//! `layers.N.mlp.experts.down_proj` is [e, m, f]; the router is `layers.N.mlp.gate.weight` in all architectures.
//! Source: transformers, `conversion_mapping.py`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use luthier_checkpoint::layout::{Layout, Part, Role, StackKind, TensorSpec};
use luthier_checkpoint::{Checkpoint, TensorInfo, TensorSource};
use luthier_kernels::bytes::SharedBytes;

use crate::{Error, Result, table};

const GATE_UP: &str = ".mlp.experts.gate_up_proj";
const DOWN: &str = ".mlp.experts.down_proj";
const ROUTER: &str = ".mlp.gate.weight";

/// The same model with each expert on its own; as it is where its file has no such tensors. Errors name a tensor of
/// another shape than the config asks for.
pub(crate) fn split(checkpoint: Checkpoint) -> Result<Checkpoint> {
    let is_fused = |info: &TensorInfo| info.name.ends_with(GATE_UP) || info.name.ends_with(DOWN);
    if !checkpoint.tensors.infos().iter().any(is_fused) {
        return Ok(checkpoint);
    }
    // Whoever needs the layout says what is wrong with the config.
    let Ok(layout) = table::layout(&checkpoint.config) else { return Ok(checkpoint) };
    let wanted: HashMap<Role, &TensorSpec> = layout.tensors.iter().map(|spec| (spec.role, spec)).collect();
    let mut split =
        Split { source: Arc::clone(&checkpoint.tensors), infos: Vec::new(), origins: HashMap::new() };
    for info in checkpoint.tensors.infos() {
        for piece in pieces(info, &layout, &wanted)? {
            let values: usize = piece.shape.iter().product();
            let of = |values: usize| info.dtype.size_bytes(&[values]).unwrap_or(0);
            let range = of(piece.first)..of(piece.first + values);
            split.infos.push(TensorInfo { name: piece.name.clone(), dtype: info.dtype, shape: piece.shape });
            split.origins.insert(piece.name, (info.name.clone(), range));
        }
    }
    Ok(Checkpoint { tensors: Arc::new(split), ..checkpoint })
}

/// A tensor that is a part of a stored one.
struct Piece {
    name: String,
    shape: Vec<usize>,
    /// Number of the first of its values.
    first: usize,
}

fn pieces(info: &TensorInfo, layout: &Layout, wanted: &HashMap<Role, &TensorSpec>) -> Result<Vec<Piece>> {
    let whole = |name: &str| vec![Piece { name: name.to_string(), shape: info.shape.clone(), first: 0 }];
    let parts: [fn(usize) -> Part; 2] = match info.name.as_str() {
        name if name.ends_with(GATE_UP) => [Part::ExpertGate, Part::ExpertUp],
        name if name.ends_with(DOWN) => [Part::ExpertDown, Part::ExpertDown],
        name if name.ends_with(ROUTER) => {
            let spec = layer_of(name).and_then(|layer| wanted.get(&role(layer, Part::Router)));
            return Ok(whole(spec.map_or(name, |spec| &spec.name)));
        }
        name => return Ok(whole(name)),
    };
    let Some(layer) = layer_of(&info.name) else { return Ok(whole(&info.name)) };
    let Some(first) = wanted.get(&role(layer, parts[0](0))) else { return Ok(whole(&info.name)) };
    let of_layer = |spec: &&TensorSpec| spec.role.layer == Some(layer);
    let experts = layout.tensors.iter().filter(of_layer);
    let experts = experts.filter(|spec| matches!(spec.role.part, Part::ExpertGate(_))).count();
    let n_parts = if info.name.ends_with(GATE_UP) { 2 } else { 1 };
    let expected = [experts, n_parts * first.shape[0], first.shape[1]];
    if info.shape != expected {
        let what = format!("expected shape {expected:?} from the config, found {:?}", info.shape);
        return Err(Error::tensor(&info.name, what));
    }
    let values: usize = first.shape.iter().product();
    let piece = |at: usize| Piece {
        name: wanted[&role(layer, parts[at % n_parts](at / n_parts))].name.clone(),
        shape: first.shape.clone(),
        first: at * values,
    };
    Ok((0..experts * n_parts).map(piece).collect())
}

fn role(layer: usize, part: Part) -> Role {
    Role { stack: StackKind::Decoder, layer: Some(layer), part }
}

/// The number behind `layers.`.
fn layer_of(name: &str) -> Option<usize> {
    name.split_once("layers.")?.1.split('.').next()?.parse().ok()
}

struct Split {
    source: Arc<dyn TensorSource>,
    infos: Vec<TensorInfo>,
    /// Stored tensor and bytes.
    origins: HashMap<String, (String, Range<usize>)>,
}

impl TensorSource for Split {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> luthier_checkpoint::Result<SharedBytes> {
        let missing = |what: &str| luthier_checkpoint::Error::tensor(name, what);
        let (stored, range) =
            self.origins.get(name).ok_or_else(|| missing("the model has no tensor of this name"))?;
        let bytes = self.source.read(stored)?;
        bytes.part(range.clone()).ok_or_else(|| missing("lies outside of the tensor that holds it"))
    }
}
