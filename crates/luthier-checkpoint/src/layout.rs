//! The layout of a model: every weight's name, shape, role, and the space of each axis. Surgery works on layouts and
//! names no architecture.

/// What an axis ranges over. Axes of one space in one stack are cut, grown or permuted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// The residual stream.
    Residual,
    /// Query heads times head width.
    Heads,
    /// Key/value heads times head width.
    KvHeads,
    /// One head.
    HeadDim,
    /// The feed-forward block's inner width.
    Ffn,
    /// Tokens.
    Vocab,
    /// Query heads, one number each.
    QueryHeads,
    /// Buckets of distances between tokens.
    Buckets,
    /// Places in a text.
    Positions,
    /// Which of two texts a token belongs to.
    TokenTypes,
    /// Classes of a text.
    Classes,
    /// Routed experts, one number each.
    Experts,
    /// The inner width of one routed expert.
    ExpertFfn,
    /// Shared experts, one number each.
    SharedExperts,
    /// The inner width of the shared expert.
    SharedFfn,
}

/// Which stack of layers a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StackKind {
    /// The stack that predicts next tokens; the only one of a decoder-only model.
    Decoder,
    /// The stack that reads the input of an encoder-decoder; the only one of an encoder-only model.
    Encoder,
}

/// One of an attention's projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Projection {
    Query,
    Key,
    Value,
    Output,
}

/// What a tensor does inside its layer or stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Token embedding.
    Embedding,
    /// Embedding of places, added to that of tokens.
    PositionEmbedding,
    /// Embedding of first and second text, added to that of tokens.
    TokenTypeEmbedding,
    /// The norm over the summed embeddings, its weight.
    EmbeddingNorm,
    /// The norm over the summed embeddings, its bias.
    EmbeddingNormBias,
    /// Output projection, where it is not the embedding.
    Head,
    /// Bias of the logits.
    HeadBias,
    /// The dense layer between the last state and the output projection, its weight.
    HeadTransform,
    /// The dense layer between the last state and the output projection, its bias.
    HeadTransformBias,
    /// The norm behind that layer, its weight.
    HeadNorm,
    /// The norm behind that layer, its bias.
    HeadNormBias,
    /// The dense layer over the first token's state that stands for the whole text, its weight.
    Pooler,
    /// The dense layer over the first token's state, its bias.
    PoolerBias,
    /// The projection that says whether one text follows another, its weight.
    SentencePairHead,
    /// The projection that says whether one text follows another, its bias.
    SentencePairHeadBias,
    /// The projection to classes, its weight.
    Classifier,
    /// The projection to classes, its bias.
    ClassifierBias,
    /// Bias of attention scores by distance, one for all layers of a stack.
    RelativeBias,
    /// The norm after the last layer.
    FinalNorm,
    /// A projection of self-attention, its weight.
    SelfAttention(Projection),
    /// A projection of self-attention, its bias.
    SelfAttentionBias(Projection),
    /// A projection of cross-attention, its weight.
    CrossAttention(Projection),
    /// A projection of cross-attention, its bias.
    CrossAttentionBias(Projection),
    /// Per-head norm of queries (`Query`) or keys (`Key`) in self-attention.
    SelfAttentionHeadNorm(Projection),
    /// Per-head norm of queries or keys in cross-attention.
    CrossAttentionHeadNorm(Projection),
    /// Norm before self-attention.
    SelfAttentionNorm,
    /// Norm after self-attention, before the residual sum.
    SelfAttentionPostNorm,
    /// Norm of the sum of the residual stream and self-attention, its weight (post-norm layers).
    SelfAttentionSumNorm,
    /// Norm of the sum of the residual stream and self-attention, its bias.
    SelfAttentionSumNormBias,
    /// Norm before cross-attention.
    CrossAttentionNorm,
    /// Norm after cross-attention, before the residual sum.
    CrossAttentionPostNorm,
    /// Norm before the feed-forward block.
    FeedForwardNorm,
    /// Norm after the feed-forward block, before the residual sum.
    FeedForwardPostNorm,
    /// Norm of the sum of the residual stream and the feed-forward block, its weight (post-norm layers).
    FeedForwardSumNorm,
    /// Norm of the sum of the residual stream and the feed-forward block, its bias.
    FeedForwardSumNormBias,
    /// Gate projection of a gated feed-forward block.
    Gate,
    /// Up projection.
    Up,
    /// Down projection.
    Down,
    /// Bias of gate, up or down.
    GateBias,
    /// Bias of the up projection.
    UpBias,
    /// Bias of the down projection.
    DownBias,
    /// Scores of the routed experts.
    Router,
    /// Gate projection of the routed expert of this number.
    ExpertGate(usize),
    /// Its up projection.
    ExpertUp(usize),
    /// Its down projection.
    ExpertDown(usize),
    /// How much the shared expert counts.
    SharedRouter,
    /// Gate projection of the shared expert.
    SharedGate,
    /// Its up projection.
    SharedUp,
    /// Its down projection.
    SharedDown,
}

/// Weight and bias of the norms that take the mean off (LayerNorm); the others norm by the mean square and have no bias.
const CENTRED_NORMS: [(Part, Part); 4] = [
    (Part::EmbeddingNorm, Part::EmbeddingNormBias),
    (Part::SelfAttentionSumNorm, Part::SelfAttentionSumNormBias),
    (Part::FeedForwardSumNorm, Part::FeedForwardSumNormBias),
    (Part::HeadNorm, Part::HeadNormBias),
];

impl Part {
    /// The weight of the norm that takes the mean off which this is the weight or the bias of.
    pub fn centred_norm(self) -> Option<Part> {
        CENTRED_NORMS
            .iter()
            .find(|(weight, bias)| self == *weight || self == *bias)
            .map(|(weight, _)| *weight)
    }

    /// The number of the routed expert that it belongs to.
    pub fn expert(self) -> Option<usize> {
        match self {
            Part::ExpertGate(expert) | Part::ExpertUp(expert) | Part::ExpertDown(expert) => Some(expert),
            _ => None,
        }
    }
}

/// Where a tensor stands: stack, layer, part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Role {
    /// Its stack.
    pub stack: StackKind,
    /// Its layer; none for embeddings, heads and final norms.
    pub layer: Option<usize>,
    /// What it does there.
    pub part: Part,
}

/// One weight that a model of this config has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name in its checkpoint.
    pub name: String,
    /// Outermost axis first.
    pub shape: Vec<usize>,
    /// The space of each axis.
    pub spaces: Vec<Space>,
    /// Where it stands.
    pub role: Role,
}

/// A second name under which files may carry a weight again (a tied head, an encoder's shared embedding).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tie {
    /// The name that may be absent.
    pub name: String,
    /// The weight that it equals.
    pub target: String,
    /// Whether a file that is written must carry it all the same, because other programs look for it.
    pub written: bool,
}

/// All weights that a model of one config has.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Layout {
    /// In forward order.
    pub tensors: Vec<TensorSpec>,
    /// Names that are the same weight.
    pub ties: Vec<Tie>,
}

impl Layout {
    /// The weight that stands at `role`.
    pub fn at(&self, role: Role) -> Option<&TensorSpec> {
        self.tensors.iter().find(|tensor| tensor.role == role)
    }

    /// Whether the model has layers of that stack. One without a decoder's predicts no next token.
    pub fn has_stack(&self, kind: StackKind) -> bool {
        self.tensors.iter().any(|spec| spec.role.stack == kind && spec.role.layer.is_some())
    }

    /// Number of values of all weights, each tied one counted once.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }
}
