//! What the tensors of a stack are called: `{i}` stands for the layer, everything inside the stack's prefix.

/// The names of one stack's modules.
#[derive(Clone, Copy, Debug)]
pub struct StackNames {
    /// Of the embedding, `.weight` included.
    pub embedding: &'static str,
    /// Of self-attention.
    pub own: AttentionNames,
    /// Of cross-attention.
    pub cross: AttentionNames,
    /// Of the feed-forward block.
    pub feed_forward: FeedForwardNames,
    /// Of the norm after the last layer.
    pub final_norm: &'static str,
}

/// The names of one attention and the norms around it.
#[derive(Clone, Copy, Debug)]
pub struct AttentionNames {
    /// In front of the projections.
    pub module: &'static str,
    /// Query, key, value and output.
    pub projections: [&'static str; 4],
    /// Before the attention and, where there is one, behind it.
    pub norms: (&'static str, Option<&'static str>),
}

/// The names of a feed-forward block and the norms around it.
#[derive(Clone, Copy, Debug)]
pub struct FeedForwardNames {
    /// In front of the projections.
    pub module: &'static str,
    /// Of a gated block: gate, up and down; without a gate only the last two count.
    pub projections: [&'static str; 3],
    /// Before the block and, where there is one, behind it.
    pub norms: (&'static str, Option<&'static str>),
}

const PROJECTIONS: [&str; 4] = ["q_proj", "k_proj", "v_proj", "o_proj"];

/// Llama's and those of most decoder-only models since.
pub const LLAMA: StackNames = StackNames {
    embedding: "embed_tokens.weight",
    own: AttentionNames {
        module: "layers.{i}.self_attn",
        projections: PROJECTIONS,
        norms: ("layers.{i}.input_layernorm", None),
    },
    cross: AttentionNames {
        module: "layers.{i}.cross_attn",
        projections: PROJECTIONS,
        norms: ("layers.{i}.cross_attn_layernorm", None),
    },
    feed_forward: FeedForwardNames {
        module: "layers.{i}.mlp",
        projections: ["gate_proj", "up_proj", "down_proj"],
        norms: ("layers.{i}.post_attention_layernorm", None),
    },
    final_norm: "norm",
};

/// Gemma 2's: a second norm behind each block.
pub const GEMMA2: StackNames = StackNames {
    own: AttentionNames {
        norms: ("layers.{i}.input_layernorm", Some("layers.{i}.post_attention_layernorm")),
        ..LLAMA.own
    },
    cross: AttentionNames {
        norms: ("layers.{i}.pre_cross_attn_layernorm", Some("layers.{i}.post_cross_attn_layernorm")),
        ..LLAMA.cross
    },
    feed_forward: FeedForwardNames {
        norms: ("layers.{i}.pre_feedforward_layernorm", Some("layers.{i}.post_feedforward_layernorm")),
        ..LLAMA.feed_forward
    },
    ..LLAMA
};

/// A name in layer `layer`.
pub fn in_layer(name: &str, layer: usize) -> String {
    name.replace("{i}", &layer.to_string())
}
