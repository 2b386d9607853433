//! BERT: an encoder with embeddings for places and token types, post-norm LayerNorm and plain feed-forward blocks.
//!
//! Paper: arXiv:1810.04805. Reference: transformers, `modeling_bert.py`. Differs from llama in: nothing is hidden
//! from a token; norms stand over the sum of the residual stream and a block, and have biases, as all projections do; the
//! head is a dense layer, a norm, and the embedding with a bias.
//!
//! Files with and without the head for masked tokens, the pooler, the head for pairs of texts and a classifier are read,
//! with and without `bert.` before the names, with `gamma` and `beta` for the vectors of norms, and keep that form. Their
//! `position_ids` say what the config says.

use crate::blocks::attention::AttentionShape;
use crate::blocks::encoder_only::{EncoderOnlyNames, EncoderOnlyShape, Form};
use crate::blocks::feed_forward::{FeedForwardShape, activation};
use crate::blocks::layer::{LayerShape, Skips};
use crate::blocks::names::{AttentionNames, FeedForwardNames};
use crate::config::{Keys, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH};
use crate::gguf::GgufDialect;
use crate::table::{Architecture, ModelShape};
use crate::{Error, Result};

/// Its line in the table.
pub const ARCHITECTURE: Architecture = Architecture {
    model_type: "bert",
    shape: |keys| Ok(ModelShape::EncoderOnly(Box::new(read(keys)?))),
    stack: None,
    encoder_decoder: None,
    gguf: Some(GgufDialect {
        architecture: "bert",
        class: "BertModel",
        interleaved_heads: false,
        whole_norms: false,
        always_tied: true,
    }),
};

const NAMES: EncoderOnlyNames = EncoderOnlyNames {
    embeddings: [
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
    ],
    embedding_norm: "embeddings.LayerNorm",
    attention: AttentionNames {
        module: "encoder.layer.{i}.attention",
        projections: ["self.query", "self.key", "self.value", "output.dense"],
        norms: ("encoder.layer.{i}.attention.output.LayerNorm", None),
    },
    feed_forward: FeedForwardNames {
        module: "encoder.layer.{i}",
        projections: ["", "intermediate.dense", "output.dense"],
        norms: ("encoder.layer.{i}.output.LayerNorm", None),
    },
    pooler: "pooler.dense",
    head: [
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
    ],
    head_bias: ["cls.predictions.bias", "cls.predictions.decoder.bias"],
    sentence_pairs: "cls.seq_relationship",
    classifiers: ["classifier", "qa_outputs"],
};

fn read(keys: &Keys) -> Result<EncoderOnlyShape> {
    refuse_variants(keys)?;
    let width = keys.size("hidden_size", MAX_WIDTH)?;
    let heads = keys.size("num_attention_heads", MAX_HEADS)?;
    if !width.is_multiple_of(heads) {
        let what = format!("{heads} does not divide hidden_size={width}");
        return Err(Error::config(keys.name("num_attention_heads"), what));
    }
    let attention = AttentionShape {
        width,
        source_width: width,
        query_heads: heads,
        kv_heads: heads,
        head_dim: width / heads,
        qkv_bias: true,
        output_bias: true,
        head_norm: None,
        scale: ((width / heads) as f64).powf(-0.5),
        softcap: None,
        window: None,
    };
    let feed_forward = FeedForwardShape {
        width,
        inner: keys.size("intermediate_size", MAX_WIDTH)?,
        bias: true,
        gated: false,
        activation: activation(keys, "hidden_act", "gelu")?,
    };
    Ok(EncoderOnlyShape {
        names: NAMES,
        form: form(keys)?,
        vocab_size: keys.size("vocab_size", MAX_VOCABULARY)?,
        width,
        positions: keys.size_or("max_position_embeddings", MAX_POSITIONS, 512)?,
        token_types: keys.size_or("type_vocab_size", MAX_WIDTH, 2)?,
        layers: vec![
            LayerShape { attention, feed_forward: feed_forward.into(), skips: Skips::default() };
            keys.size("num_hidden_layers", MAX_LAYERS)?
        ],
        norm_eps: keys.number_or("layer_norm_eps", 1e-12)?,
        tied_head: keys.flag_or("tie_word_embeddings", true)?,
        initializer_range: keys.number_or("initializer_range", 0.02)?,
        pad_token: keys.optional_token_or("pad_token_id", 0)?,
    })
}

/// What the class in `architectures` carries; a file's own tensors say more.
fn form(keys: &Keys) -> Result<Form> {
    let class = keys.map().get("architectures").and_then(|list| list.get(0)).and_then(|name| name.as_str());
    let labels = keys.map().get("id2label").and_then(|labels| labels.as_object()).map(|labels| labels.len());
    let classes =
        keys.optional_size("num_labels", MAX_WIDTH)?.or(labels.filter(|labels| *labels > 0)).unwrap_or(2);
    let class = class.unwrap_or("BertForMaskedLM");
    Ok(Form {
        prefix: if class == "BertModel" { "" } else { "bert." }.to_string(),
        norm_vectors: ["weight", "bias"],
        head_bias: matches!(class, "BertForMaskedLM" | "BertForPreTraining" | "BertLMHeadModel").then_some(0),
        pooler: !matches!(
            class,
            "BertForMaskedLM" | "BertLMHeadModel" | "BertForTokenClassification" | "BertForQuestionAnswering"
        ),
        sentence_pairs: class == "BertForPreTraining",
        classifier: match class {
            "BertForSequenceClassification" | "BertForTokenClassification" => Some(("classifier", classes)),
            "BertForMultipleChoice" => Some(("classifier", 1)),
            "BertForQuestionAnswering" => Some(("qa_outputs", 2)),
            _ => None,
        },
    })
}

/// Kinds of BERT that compute otherwise.
fn refuse_variants(keys: &Keys) -> Result<()> {
    let kind = keys.text_or("position_embedding_type", "absolute")?;
    if kind != "absolute" {
        let what = format!("{kind:?} is not supported; wanted \"absolute\"");
        return Err(Error::config(keys.name("position_embedding_type"), what));
    }
    for key in ["is_decoder", "add_cross_attention"] {
        if keys.flag_or(key, false)? {
            let what = "a BERT that is a decoder is not supported; set it to false for the encoder";
            return Err(Error::config(keys.name(key), what));
        }
    }
    if keys.object("pruned_heads")?.is_some_and(|heads| !heads.map().is_empty()) {
        let what = "layers with fewer heads than the others are not supported";
        return Err(Error::config(keys.name("pruned_heads"), what));
    }
    Ok(())
}
