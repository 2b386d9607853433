//! More channels, heads and neurons: what each tensor becomes so that, where the operation keeps the function, every
//! block gives the same sums.
//!
//! Copies (`split`; Net2Net, arXiv:1511.05641; bert2BERT, arXiv:2110.07143): every axis stands g times, and what reads an
//! axis is divided by g. Norms of a stream that stands g times see the same statistics. Zeros: what writes to new channels
//! is 0, what reads them is fresh. A root mean square over g times the channels, all new ones 0, is 1/sqrt(g) of the old
//! one: x / sqrt(ms / g + eps / g) * w / sqrt(g) = x / sqrt(ms + eps) * w. A norm that takes the mean off has no such way
//! out: among zeros its mean is 1/g of the old one, which differs from token to token, and no weights make up for that.

use luthier_arch::sizes::{HeadSizes, LayerSizes, ModelSizes, NewStack, StackSizes};
use luthier_checkpoint::Dtype;
use luthier_checkpoint::layout::{Layout, Part, Role, Space, StackKind, TensorSpec};

use super::Operation;
use super::depth::writes;
use super::piece::{Fill, Form, Wider};

/// The sizes of the grown stack. Widths of heads stay.
pub(super) fn sizes(stack: &StackSizes, times: usize, operation: Operation) -> NewStack {
    let wider =
        |heads: HeadSizes| HeadSizes { query: heads.query * times, kv: heads.kv * times, width: heads.width };
    let layers = stack.layers.iter().map(|layer| LayerSizes {
        inner: layer.inner.map(|inner| inner * times),
        heads: layer.heads.map(wider),
        ..layer.clone()
    });
    let norm_eps = if operation == Operation::Zero { stack.norm_eps / times as f64 } else { stack.norm_eps };
    NewStack {
        width: stack.width * times,
        norm_eps,
        kept: (0..stack.layers.len()).collect(),
        layers: layers.collect(),
    }
}

/// What all tensors of a model are widened by.
pub(super) struct Widener<'w> {
    pub(super) before: &'w Layout,
    pub(super) old: &'w ModelSizes,
    pub(super) new: &'w ModelSizes,
    pub(super) times: usize,
    pub(super) operation: Operation,
    pub(super) asymmetry: f64,
}

impl Widener<'_> {
    /// What `spec`, which was `source` and is stored in `dtype`, holds.
    pub(super) fn form(&self, spec: &TensorSpec, source: &TensorSpec, dtype: Dtype) -> Form {
        let times: Vec<usize> = spec.shape.iter().zip(&source.shape).map(|(new, old)| new / old).collect();
        let fill = match self.operation {
            Operation::Split | Operation::Stack => Fill::Copies,
            Operation::Zero if spec.role.part == Part::Embedding || writes(spec.role.part) => Fill::Zeros,
            Operation::Zero | Operation::Random => Fill::Fresh,
        };
        let factor = self.factor(spec, &times, dtype);
        let is_same = times.iter().all(|times| *times == 1) && (factor - 1.0).abs() <= f64::EPSILON;
        if is_same {
            return Form::Copied { is_learnt: true };
        }
        let reads = is_projection(spec.role.part) && times.last().is_some_and(|times| *times > 1);
        let asymmetry = if reads && fill == Fill::Copies { self.asymmetry } else { 0.0 };
        let offset = if is_stream_norm(spec) { self.stack(self.old, spec).norm_offset } else { 0.0 };
        Form::Wider(Wider { times, fill, factor, offset, asymmetry })
    }

    fn stack<'s>(&self, sizes: &'s ModelSizes, spec: &TensorSpec) -> &'s StackSizes {
        sizes.stack(spec.role.stack).unwrap_or(&sizes.stacks[sizes.stacks.len() - 1])
    }

    /// On the old values.
    fn factor(&self, spec: &TensorSpec, times: &[usize], dtype: Dtype) -> f64 {
        let root = (self.times as f64).sqrt();
        let part = spec.role.part;
        match self.operation {
            Operation::Stack | Operation::Random => 1.0,
            _ if part == Part::Embedding => self.embedding(spec),
            Operation::Split if part == Part::FinalNorm => self.before_head(spec),
            Operation::Split if part.centred_norm() == Some(Part::HeadNorm) => self.before_masked_head(spec),
            Operation::Split if is_projection(part) => 1.0 / *times.last().unwrap_or(&1) as f64,
            Operation::Split => 1.0,
            Operation::Zero if part == Part::FinalNorm => self.before_head(spec) / root,
            Operation::Zero if is_stream_norm(spec) => 1.0 / root,
            // Norms of heads share the eps; scaled heads are normed to what they were. Where the type would round what
            // is scaled, that costs more than an eps beside a mean square.
            Operation::Zero if self.is_head_normed(spec) && (is_f32(dtype) || root.fract() == 0.0) => {
                1.0 / root
            }
            Operation::Zero => 1.0,
        }
    }

    /// Undoes what a scale of embeddings by the width changes.
    fn embedding(&self, spec: &TensorSpec) -> f64 {
        self.stack(self.old, spec).embedding_scale / self.stack(self.new, spec).embedding_scale
    }

    /// On the states that the head reads: undoes what a scale by the width changes, and what a head that is the embedding
    /// sums and scales. Of an encoder, whose states no head reads, 1.
    fn before_head(&self, spec: &TensorSpec) -> f64 {
        if spec.role.stack != StackKind::Decoder {
            return 1.0;
        }
        let states = self.old.state_scale / self.new.state_scale;
        let head = Role { stack: StackKind::Decoder, layer: None, part: Part::Head };
        if self.before.at(head).is_some() {
            return states;
        }
        let summed = if self.operation == Operation::Split { self.times as f64 } else { 1.0 };
        states / (summed * self.embedding(spec))
    }

    /// On what an encoder's head for masked tokens reads: undoes what a head that is the embedding sums.
    fn before_masked_head(&self, spec: &TensorSpec) -> f64 {
        let head = Role { layer: None, part: Part::Head, ..spec.role };
        if self.before.at(head).is_some() { 1.0 } else { 1.0 / self.times as f64 }
    }

    /// Whether a norm over each head stands behind this projection.
    fn is_head_normed(&self, spec: &TensorSpec) -> bool {
        use Part::{CrossAttention, CrossAttentionBias, SelfAttention, SelfAttentionBias};
        let norm = match spec.role.part {
            SelfAttention(projection) | SelfAttentionBias(projection) => {
                Part::SelfAttentionHeadNorm(projection)
            }
            CrossAttention(projection) | CrossAttentionBias(projection) => {
                Part::CrossAttentionHeadNorm(projection)
            }
            _ => return false,
        };
        self.before.at(Role { part: norm, ..spec.role }).is_some()
    }
}

fn is_f32(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F64)
}

/// Whether a matrix sums over its last axis; the others are looked up in.
fn is_projection(part: Part) -> bool {
    use Part::*;
    let of_experts = part.expert().is_some() || matches!(part, SharedGate | SharedUp | SharedDown);
    let routes = matches!(part, Router | SharedRouter);
    let of_states = matches!(part, HeadTransform | Pooler | SentencePairHead | Classifier);
    of_experts
        || routes
        || of_states
        || matches!(part, SelfAttention(_) | CrossAttention(_) | Gate | Up | Down | Head)
}

fn is_stream_norm(spec: &TensorSpec) -> bool {
    use Part::*;
    let parts = [
        FinalNorm,
        SelfAttentionNorm,
        SelfAttentionPostNorm,
        CrossAttentionNorm,
        CrossAttentionPostNorm,
        FeedForwardNorm,
        FeedForwardPostNorm,
    ];
    spec.spaces == [Space::Residual] && parts.contains(&spec.role.part)
}
