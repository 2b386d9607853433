//! An encoder-only model: a post-norm stack that sees all of its input, and the heads that its file happens to carry.
//!
//! Files of one model differ in what stands around the stack: a head for masked tokens, a pooler, a classifier, a prefix
//! before the stack's names, older names of norms. A [`Form`] says which; it is read off the tensors, and kept.

use luthier_checkpoint::TensorInfo;
use luthier_checkpoint::layout::{Layout, Part, Role, Space, StackKind, TensorSpec, Tie};
use serde_json::{Map, Value};

use super::attention::Reads;
use super::layer::LayerShape;
use super::layer_norm::LayerNormShape;
use super::names::{AttentionNames, FeedForwardNames, in_layer};
use super::running_encoder::RunningEncoderOnly;
use super::stack::Site;
use crate::Result;
use crate::model::Model;
use crate::weights::WeightSet;

/// The names of a stack's modules inside its prefix, and of the heads.
#[derive(Clone, Copy, Debug)]
pub struct EncoderOnlyNames {
    /// Embeddings of tokens, places and token types, `.weight` included.
    pub embeddings: [&'static str; 3],
    /// The norm over their sum.
    pub embedding_norm: &'static str,
    /// Of self-attention; the first norm stands over the sum of the residual stream and its output.
    pub attention: AttentionNames,
    /// Of the feed-forward block; the same.
    pub feed_forward: FeedForwardNames,
    /// The pooler's dense layer.
    pub pooler: &'static str,
    /// Outside the prefix: the head's dense layer, its norm, the output projection.
    pub head: [&'static str; 3],
    /// Outside the prefix: the two names of the logits' bias, each whole.
    pub head_bias: [&'static str; 2],
    /// Outside the prefix: the projection that says whether one text follows another.
    pub sentence_pairs: &'static str,
    /// Outside the prefix: what a projection to classes may be called.
    pub classifiers: [&'static str; 2],
}

/// What stands around the stack in one file, and how its tensors are called there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// Before the names of the stack: `bert.`, or nothing.
    pub prefix: String,
    /// What a norm's weight and bias are called.
    pub norm_vectors: [&'static str; 2],
    /// Which of its two names the bias of the logits has; none without a head for masked tokens.
    pub head_bias: Option<usize>,
    /// Whether there is a pooler.
    pub pooler: bool,
    /// Whether there is a head for pairs of texts.
    pub sentence_pairs: bool,
    /// What the projection to classes is called and how many there are.
    pub classifier: Option<(&'static str, usize)>,
}

/// Sizes and rules of the model.
#[derive(Clone, Debug)]
pub struct EncoderOnlyShape {
    /// What its tensors are called.
    pub names: EncoderOnlyNames,
    /// What its file carries.
    pub form: Form,
    /// v.
    pub vocab_size: usize,
    /// m.
    pub width: usize,
    /// Places that there are embeddings for.
    pub positions: usize,
    /// Token types that there are embeddings for.
    pub token_types: usize,
    /// Each on its own: layers may differ.
    pub layers: Vec<LayerShape>,
    /// Under the roots of all norms.
    pub norm_eps: f64,
    /// Whether the head is the embedding.
    pub tied_head: bool,
    /// Deviation of freshly drawn weights.
    pub initializer_range: f64,
    /// The token whose freshly made embedding is zero.
    pub pad_token: Option<u32>,
}

impl EncoderOnlyShape {
    /// The same in the form that these tensors have. Where not even an embedding is found the form stays, so that what is
    /// missing is named as the config has it.
    pub fn fitted(mut self, infos: &[TensorInfo]) -> EncoderOnlyShape {
        if let Some(form) = self.form_of(infos) {
            self.form = form;
        }
        self
    }

    fn form_of(&self, infos: &[TensorInfo]) -> Option<Form> {
        let find = |name: &str| infos.iter().find(|info| info.name == name);
        let embedding = self.names.embeddings[0];
        let prefix = infos.iter().find_map(|info| info.name.strip_suffix(embedding))?.to_string();
        let has = |name: &str| find(name).is_some();
        let norm = format!("{prefix}{}", self.names.embedding_norm);
        let norm_vectors = if has(&format!("{norm}.gamma")) { ["gamma", "beta"] } else { ["weight", "bias"] };
        let has_head = has(&format!("{}.weight", self.names.head[0]));
        let head_bias = self.names.head_bias.iter().position(|name| has(name)).or(has_head.then_some(0));
        let classes = |name: &str| find(&format!("{name}.weight")).and_then(|info| info.shape.first());
        let classifiers = self.names.classifiers.iter();
        Some(Form {
            norm_vectors,
            head_bias,
            pooler: has(&format!("{prefix}{}.weight", self.names.pooler)),
            sentence_pairs: has(&format!("{}.weight", self.names.sentence_pairs)),
            classifier: classifiers.filter_map(|name| Some((*name, *classes(name)?))).next(),
            prefix,
        })
    }

    pub(super) fn norm(&self) -> LayerNormShape {
        LayerNormShape { eps: self.norm_eps, vectors: self.form.norm_vectors }
    }

    pub(super) fn site(&self) -> Site {
        Site { prefix: self.form.prefix.clone(), kind: StackKind::Encoder, encoder_width: None }
    }

    /// All weights of the file.
    pub fn layout(&self) -> Layout {
        let mut tensors = self.stack_specs();
        if self.form.pooler {
            let parts = [Part::Pooler, Part::PoolerBias];
            tensors.extend(self.linear(&self.site().name(self.names.pooler), self.width, parts));
        }
        let mut ties = Vec::new();
        self.head_specs(&mut tensors, &mut ties);
        if self.form.sentence_pairs {
            let parts = [Part::SentencePairHead, Part::SentencePairHeadBias];
            tensors.extend(self.projection(self.names.sentence_pairs, 2, Space::Classes, parts));
        }
        if let Some((name, classes)) = self.form.classifier {
            let parts = [Part::Classifier, Part::ClassifierBias];
            tensors.extend(self.projection(name, classes, Space::Classes, parts));
        }
        Layout { tensors, ties }
    }

    fn stack_specs(&self) -> Vec<TensorSpec> {
        let (site, norm, names) = (self.site(), self.norm(), &self.names);
        let residual = (self.width, Space::Residual);
        let mut specs = Vec::new();
        for (name, part, entries) in [
            (names.embeddings[0], Part::Embedding, (self.vocab_size, Space::Vocab)),
            (names.embeddings[1], Part::PositionEmbedding, (self.positions, Space::Positions)),
            (names.embeddings[2], Part::TokenTypeEmbedding, (self.token_types, Space::TokenTypes)),
        ] {
            specs.push(site.spec(name, None, part, &[entries, residual]));
        }
        let parts = [Part::EmbeddingNorm, Part::EmbeddingNormBias];
        specs.extend(norm.specs(&site, names.embedding_norm, None, parts, self.width));
        for (at, layer) in self.layers.iter().enumerate() {
            specs.extend(layer.attention.specs(&site, at, Reads::Own, &names.attention));
            let parts = [Part::SelfAttentionSumNorm, Part::SelfAttentionSumNormBias];
            let name = in_layer(names.attention.norms.0, at);
            specs.extend(norm.specs(&site, &name, Some(at), parts, self.width));
            specs.extend(layer.feed_forward.specs(&site, at, &names.feed_forward));
            let parts = [Part::FeedForwardSumNorm, Part::FeedForwardSumNormBias];
            let name = in_layer(names.feed_forward.norms.0, at);
            specs.extend(norm.specs(&site, &name, Some(at), parts, self.width));
        }
        specs
    }

    /// The head for masked tokens: a dense layer, a norm, a projection that is the embedding or a weight of its own.
    fn head_specs(&self, tensors: &mut Vec<TensorSpec>, ties: &mut Vec<Tie>) {
        let Some(bias) = self.form.head_bias else { return };
        let [dense, norm, projection] = self.names.head;
        tensors.extend(self.linear(dense, self.width, [Part::HeadTransform, Part::HeadTransformBias]));
        let outside = Site { prefix: String::new(), ..self.site() };
        let parts = [Part::HeadNorm, Part::HeadNormBias];
        tensors.extend(self.norm().specs(&outside, norm, None, parts, self.width));
        let weight = format!("{projection}.weight");
        if self.tied_head {
            let target = self.site().name(self.names.embeddings[0]);
            ties.push(Tie { name: weight, target, written: false });
        } else {
            let axes = [(self.vocab_size, Space::Vocab), (self.width, Space::Residual)];
            tensors.push(outside.spec(&weight, None, Part::Head, &axes));
        }
        let (name, other) = (self.names.head_bias[bias], self.names.head_bias[1 - bias]);
        tensors.push(outside.spec(name, None, Part::HeadBias, &[(self.vocab_size, Space::Vocab)]));
        ties.push(Tie { name: other.to_string(), target: name.to_string(), written: false });
    }

    fn linear(&self, module: &str, outputs: usize, parts: [Part; 2]) -> [TensorSpec; 2] {
        self.projection(module, outputs, Space::Residual, parts)
    }

    /// Weight and bias of a linear map from the residual stream, by their whole names.
    fn projection(&self, module: &str, outputs: usize, space: Space, parts: [Part; 2]) -> [TensorSpec; 2] {
        let (rows, columns) = ((outputs, space), (self.width, Space::Residual));
        let spec = |name: &str, part: Part, axes: &[(usize, Space)]| TensorSpec {
            name: format!("{module}.{name}"),
            shape: axes.iter().map(|axis| axis.0).collect(),
            spaces: axes.iter().map(|axis| axis.1).collect(),
            role: Role { stack: StackKind::Encoder, layer: None, part },
        };
        [spec("weight", parts[0], &[rows, columns]), spec("bias", parts[1], &[rows])]
    }

    /// The model that runs.
    pub fn build(&self, config: &Map<String, Value>, weights: WeightSet) -> Result<Box<dyn Model>> {
        Ok(Box::new(RunningEncoderOnly::build(self, config, weights)?))
    }
}
