//! What each tensor of the base is to an adapter, and what stands beside it in the tuned model, from headers alone.

use std::collections::{BTreeMap, HashMap, HashSet};

use luthier_checkpoint::TensorInfo;
use luthier_checkpoint::layout::{Layout, Part};

use crate::{Error, Input, Result};

/// How an adapter can hold a change of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A linear layer's weight: a pair.
    Linear,
    /// An embedding's: a pair of its own kind, or whole.
    Embedding,
    /// The head's: a pair, or whole.
    Head,
    /// A part of a norm: whole.
    Norm,
    /// A bias: whole.
    Bias,
    /// Not at all.
    Other,
}

impl Kind {
    /// For people, in the plural.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Linear => "matrices",
            Kind::Embedding => "embeddings",
            Kind::Head => "heads",
            Kind::Norm => "norms",
            Kind::Bias => "biases",
            Kind::Other => "tensors of other kinds",
        }
    }
}

/// A tensor that both models have.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    /// The module that it belongs to.
    pub(super) path: String,
    pub(super) kind: Kind,
    pub(super) shape: Vec<usize>,
    /// Whether the weight is stored `[in, out]`.
    pub(super) swapped: bool,
}

/// The tensors of two models, sorted out.
pub(super) struct Classified {
    /// In the base's order.
    pub(super) shared: Vec<Shared>,
    /// Of the base (0) or the tuned model (1), and why they play no part.
    pub(super) left_out: Vec<(usize, String, String)>,
    /// Names that repeat a tied weight, in either model, with that weight; their values are to be compared.
    pub(super) ties: Vec<(usize, String, String)>,
    /// Whether the base ties its head to its embedding.
    pub(super) has_tied_head: bool,
    /// Whether linear layers are stored `[in, out]`.
    pub(super) fan_in_fan_out: bool,
}

/// Whether one of the patterns fits a tensor: each is a stretch of whole parts of its name (`q_proj`, `layers.0`,
/// `classifier`).
pub(super) fn fits(patterns: &[String], name: &str) -> bool {
    let name = format!(".{name}.");
    patterns.iter().any(|pattern| name.contains(&format!(".{pattern}.")))
}

/// Sorts the tensors of `base` and `tuned`, which have the same names. Refuses what only one has, and other shapes, where
/// `exclude` does not name it; and a pattern that fits nothing.
pub(super) fn classify(
    [base, tuned]: [&Input; 2],
    layout: Option<&Layout>,
    exclude: &[String],
    targets: &[String],
) -> Result<Classified> {
    let infos = [base, tuned].map(|input| input.checkpoint.tensors.infos());
    let by_name = infos.map(|infos| {
        infos.iter().map(|info| (info.name.as_str(), info)).collect::<HashMap<&str, &TensorInfo>>()
    });
    for (key, pattern) in exclude
        .iter()
        .map(|pattern| ("exclude", pattern))
        .chain(targets.iter().map(|name| ("target-modules", name)))
    {
        let one = std::slice::from_ref(pattern);
        if !infos.iter().any(|infos| infos.iter().any(|info| fits(one, &info.name))) {
            let what = format!(
                "--{key} {pattern}: fits no tensor; wanted whole parts of names, such as q_proj or layers.0"
            );
            return Err(Error::Use(what));
        }
    }
    let tied: HashMap<&str, &str> = layout
        .iter()
        .flat_map(|layout| &layout.ties)
        .map(|tie| (tie.name.as_str(), tie.target.as_str()))
        .collect();
    let (mut shared, mut left_out, mut ties, mut alone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let modules = modules(infos[0]);
    for number in [0, 1] {
        for info in infos[number] {
            let name = info.name.as_str();
            let other = by_name[1 - number].get(name);
            if fits(exclude, name) {
                left_out.push((number, name.to_string(), "--exclude names it".to_string()));
            } else if let Some(target) = tied.get(name) {
                ties.push((number, name.to_string(), (*target).to_string()));
            } else if let Some(other) = other {
                if other.shape != info.shape {
                    return Err(other_shape(base, tuned, by_name[0][name], by_name[1][name]));
                }
                if number == 0 {
                    shared.push(of_kind(info, layout, &modules));
                }
            } else if name.ends_with(".rotary_emb.inv_freq") {
                left_out.push((
                    number,
                    name.to_string(),
                    "a buffer that follows from the config".to_string(),
                ));
            } else {
                alone.push((number, name));
            }
        }
    }
    if let Some((number, _)) = alone.first() {
        let labels = [&base.label, &tuned.label];
        let names: Vec<&str> = alone.iter().filter(|(of, _)| of == number).map(|(_, name)| *name).collect();
        return Err(Error::Use(format!(
            "{} has {} tensors that {} has not: {}; an adapter adds none, leave them out with --exclude",
            labels[*number],
            names.len(),
            labels[1 - number],
            some(&names)
        )));
    }
    let fan_in_fan_out = swap(&mut shared, &modules);
    let has_tied_head = layout.is_some_and(|layout| {
        layout.ties.iter().any(|tie| {
            layout.tensors.iter().any(|spec| spec.name == tie.target && spec.role.part == Part::Embedding)
        }) && !layout.tensors.iter().any(|spec| spec.role.part == Part::Head)
    });
    Ok(Classified { shared, left_out, ties, has_tied_head, fan_in_fan_out })
}

/// The first names of a list.
pub(super) fn some(names: &[&str]) -> String {
    const SHOWN: usize = 12;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

fn other_shape(base: &Input, tuned: &Input, a: &TensorInfo, b: &TensorInfo) -> Error {
    let what = format!(
        "has shape {:?} in {} and {:?} in {}; wanted a fine-tune of this base, of its sizes and its vocabulary, or leave the \
         tensor out with --exclude",
        a.shape, base.label, b.shape, tuned.label
    );
    luthier_checkpoint::Error::tensor(&a.name, what).into()
}

/// The tensors of each module, by its path.
type Modules<'i> = BTreeMap<&'i str, Vec<&'i TensorInfo>>;

fn modules(infos: &[TensorInfo]) -> Modules<'_> {
    let mut modules = Modules::new();
    for info in infos {
        modules.entry(parent(&info.name)).or_default().push(info);
    }
    modules
}

/// What stands before the last dot.
fn parent(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(parent, _)| parent)
}

/// What stands behind it.
pub(super) fn last(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}

fn of_kind(info: &TensorInfo, layout: Option<&Layout>, modules: &Modules) -> Shared {
    let path = parent(&info.name);
    let role = layout.and_then(|layout| layout.tensors.iter().find(|spec| spec.name == info.name));
    let is_vector = |info: &&TensorInfo| info.shape.len() == 1;
    let part = role.map(|spec| spec.role.part);
    let kind = match part {
        Some(Part::Embedding | Part::PositionEmbedding | Part::TokenTypeEmbedding | Part::RelativeBias) => {
            Kind::Embedding
        }
        Some(Part::Head) => Kind::Head,
        _ if info.name.ends_with(".weight") && info.shape.len() == 2 => match part {
            Some(_) => Kind::Linear,
            None => by_name(path),
        },
        _ if !info.dtype.is_float() => Kind::Other,
        _ if !path.is_empty() && info.name.ends_with(".weight") && info.shape.len() == 1 => Kind::Norm,
        // A norm's own bias stays with it.
        _ if last(&info.name) == "bias" && info.shape.len() == 1 => {
            let is_norm = modules[path].iter().all(is_vector) && modules[path].len() > 1;
            if is_norm { Kind::Norm } else { Kind::Bias }
        }
        _ => Kind::Other,
    };
    Shared {
        name: info.name.clone(),
        path: path.to_string(),
        kind,
        shape: info.shape.clone(),
        swapped: false,
    }
}

/// The kind of a matrix where no layout says it. Names are those of transformers' modules.
fn by_name(path: &str) -> Kind {
    const EMBEDDINGS: &[&str] = &["wte", "wpe", "shared", "tok_embeddings", "relative_attention_bias"];
    const HEADS: &[&str] = &["lm_head", "embed_out", "qa_outputs", "classifier", "score", "seq_relationship"];
    let module = last(path);
    let is_embedding = |word: &str| {
        word.starts_with("embed_") || word.ends_with("_embeddings") || word.ends_with("_embedding")
    };
    if HEADS.contains(&module) || path.ends_with("predictions.decoder") {
        Kind::Head
    } else if EMBEDDINGS.contains(&module) || is_embedding(module) {
        Kind::Embedding
    } else {
        Kind::Linear
    }
}

/// Marks weights that are stored `[in, out]`: a bias is as long as the outputs are many. Square ones follow the others.
/// Returns whether there are such.
fn swap(shared: &mut [Shared], modules: &Modules) -> bool {
    let of_bias = |tensor: &Shared| -> Option<bool> {
        let bias = modules.get(tensor.path.as_str())?.iter().find(|info| last(&info.name) == "bias")?;
        match (&tensor.shape[..], &bias.shape[..]) {
            ([rows, cols], [len]) if rows != cols && len == cols => Some(true),
            ([rows, cols], [len]) if rows != cols && len == rows => Some(false),
            _ => None,
        }
    };
    let told: Vec<Option<bool>> =
        shared.iter().map(|tensor| of_bias(tensor).filter(|_| tensor.kind == Kind::Linear)).collect();
    let seen: HashSet<bool> = told.iter().flatten().copied().collect();
    let all = seen.contains(&true) && !seen.contains(&false);
    for (tensor, told) in shared.iter_mut().zip(told).filter(|(tensor, _)| tensor.kind == Kind::Linear) {
        let has_bias = modules.get(tensor.path.as_str()).is_some_and(|infos| infos.len() > 1);
        tensor.swapped = told.unwrap_or(all && has_bias);
    }
    seen.contains(&true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_whole_parts_of_names() {
        let fit = |pattern: &str, name: &str| fits(&[pattern.to_string()], name);
        assert!(fit("q_proj", "model.layers.0.self_attn.q_proj.weight"));
        assert!(fit("layers.0", "model.layers.0.self_attn.q_proj.weight"));
        assert!(!fit("layers.1", "model.layers.11.self_attn.q_proj.weight"));
        assert!(!fit("proj", "model.layers.0.self_attn.q_proj.weight"));
        assert!(fit("cls", "cls.predictions.bias") && fit("classifier.weight", "classifier.weight"));
    }

    #[test]
    fn matrices_of_unknown_models_are_told_by_their_names() {
        assert_eq!(by_name("bert.embeddings.word_embeddings"), Kind::Embedding);
        assert_eq!(by_name("model.embed_tokens"), Kind::Embedding);
        assert_eq!(by_name("transformer.wte"), Kind::Embedding);
        assert_eq!(by_name("cls.predictions.decoder"), Kind::Head);
        assert_eq!(by_name("cls.predictions.transform.dense"), Kind::Linear);
        assert_eq!(by_name("bert.encoder.layer.0.attention.self.query"), Kind::Linear);
    }
}
