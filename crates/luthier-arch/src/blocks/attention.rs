//! Attention as a part of a model: projections, per-head norms, rotary positions, cache; over the stack's own tokens or
//! over the encoder's states.

use luthier_checkpoint::layout::{Part, Projection, Space, TensorSpec};
use luthier_ops::attention::{AttentionSpec, KvCache, attention, attention_cached};
use luthier_ops::rope::rope;
use luthier_ops::{Result, Tensor};

use super::linear::Linear;
use super::names::{AttentionNames, in_layer};
use super::norm::{Norm, NormShape};
use super::pass::Pass;
use super::stack::Site;
use crate::Error;
use crate::config::{Keys, MAX_HEADS, MAX_WIDTH};
use crate::weights::WeightSet;

// b batch, t tokens, s encoder tokens, h query heads, k kv heads, d head width, m model width

/// Sizes and rules of one attention.
#[derive(Clone, Debug)]
pub struct AttentionShape {
    /// m.
    pub width: usize,
    /// Width of the states that keys and values are made of: m, or the encoder's width in cross-attention.
    pub source_width: usize,
    /// h, a multiple of k.
    pub query_heads: usize,
    /// k.
    pub kv_heads: usize,
    /// d, even where positions are rotary.
    pub head_dim: usize,
    /// Whether query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// The norm over each query and key head, where there is one.
    pub head_norm: Option<NormShape>,
    /// Factor on the scores.
    pub scale: f64,
    /// Soft cap of the scores.
    pub softcap: Option<f64>,
    /// Sliding window in tokens, the query's own included.
    pub window: Option<usize>,
}

/// Which tokens an attention reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Those of its own stack (`self_attn`).
    Own,
    /// The encoder's (`cross_attn`).
    Encoder,
}

impl AttentionShape {
    /// The cross-attention that stands beside this self-attention: the same heads, no window.
    pub fn cross(&self, encoder_width: usize) -> AttentionShape {
        AttentionShape { source_width: encoder_width, window: None, ..self.clone() }
    }

    /// The tensors of layer `layer`.
    pub fn specs(&self, site: &Site, layer: usize, reads: Reads, names: &AttentionNames) -> Vec<TensorSpec> {
        let residual = (self.width, Space::Residual);
        let source = (self.source_width, Space::Residual);
        let heads = (self.query_heads * self.head_dim, Space::Heads);
        let kv_heads = (self.kv_heads * self.head_dim, Space::KvHeads);
        let [query, key, value, output] = names.projections;
        let projections = [
            (query, Projection::Query, self.qkv_bias, heads, residual),
            (key, Projection::Key, self.qkv_bias, kv_heads, source),
            (value, Projection::Value, self.qkv_bias, kv_heads, source),
            (output, Projection::Output, self.output_bias, residual, heads),
        ];
        let module = in_layer(names.module, layer);
        let mut specs = Vec::new();
        for (name, projection, bias, output, input) in projections {
            let (part, bias_part) = match reads {
                Reads::Own => (Part::SelfAttention(projection), Part::SelfAttentionBias(projection)),
                Reads::Encoder => (Part::CrossAttention(projection), Part::CrossAttentionBias(projection)),
            };
            specs.push(site.spec(&format!("{module}.{name}.weight"), Some(layer), part, &[output, input]));
            if bias {
                specs.push(site.spec(&format!("{module}.{name}.bias"), Some(layer), bias_part, &[output]));
            }
        }
        if self.head_norm.is_some() {
            for (name, projection) in [("q_norm", Projection::Query), ("k_norm", Projection::Key)] {
                let part = match reads {
                    Reads::Own => Part::SelfAttentionHeadNorm(projection),
                    Reads::Encoder => Part::CrossAttentionHeadNorm(projection),
                };
                let axes = [(self.head_dim, Space::HeadDim)];
                specs.push(site.spec(&format!("{module}.{name}.weight"), Some(layer), part, &axes));
            }
        }
        specs
    }

    /// The attention of layer `layer`.
    pub fn build(
        &self,
        site: &Site,
        weights: &WeightSet,
        layer: usize,
        names: &AttentionNames,
    ) -> crate::Result<Attention> {
        let module = site.name(&in_layer(names.module, layer));
        let [query, key, value, output] = names.projections;
        let linear = |name: &str, bias: bool| Linear::build(weights, &format!("{module}.{name}"), bias);
        let norm = |name: &str| {
            self.head_norm.map(|norm| norm.build(weights, &format!("{module}.{name}"))).transpose()
        };
        Ok(Attention {
            query: linear(query, self.qkv_bias)?,
            key: linear(key, self.qkv_bias)?,
            value: linear(value, self.qkv_bias)?,
            output: linear(output, self.output_bias)?,
            query_norm: norm("q_norm")?,
            key_norm: norm("k_norm")?,
            shape: self.clone(),
        })
    }
}

/// An attention that runs.
pub struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    query_norm: Option<Norm>,
    key_norm: Option<Norm>,
    shape: AttentionShape,
}

impl Attention {
    /// Self-attention. x: [b, t, m] -> [b, t, m].
    pub fn own(&self, x_btm: &Tensor, pass: &Pass, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let turned = |x: Tensor| match &pass.turns {
            Some((cos, sin)) => rope(&x, cos, sin),
            None => Ok(x),
        };
        let [q, k, v] = Linear::forward_all([&self.query, &self.key, &self.value], x_btm)?;
        let (q_bthd, k_btkd) = (turned(self.query_heads(&q)?)?, turned(self.key_heads(&k)?)?);
        let v_btkd = self.split(&v, self.shape.kv_heads)?;
        let spec = AttentionSpec {
            scale: self.shape.scale,
            softcap: self.shape.softcap,
            causal: pass.causal,
            window: self.shape.window,
            query_offset: pass.query_offset,
            segments: pass.segments.clone(),
            bias: pass.bias.clone(),
        };
        let o_bthd = match cache {
            Some(cache) => {
                cache.append(&k_btkd, &v_btkd)?;
                attention_cached(&q_bthd, cache, &spec)?
            }
            None => attention(&q_bthd, &k_btkd, &v_btkd, &spec)?,
        };
        self.project(&o_bthd)
    }

    /// Cross-attention, without positions or window. x: [b, t, m], encoded: [b, s, e] -> [b, t, m]. A cache is filled
    /// once and read from then on.
    pub fn cross(
        &self,
        x_btm: &Tensor,
        encoded_bse: &Tensor,
        pass: &Pass,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let q_bthd = self.queries(x_btm)?;
        let spec = AttentionSpec {
            scale: self.shape.scale,
            softcap: self.shape.softcap,
            causal: false,
            window: None,
            query_offset: 0,
            segments: pass.cross_segments.clone(),
            bias: None,
        };
        let o_bthd = match cache {
            Some(cache) => {
                if cache.is_empty() {
                    cache.append(&self.keys(encoded_bse)?, &self.values(encoded_bse)?)?;
                }
                attention_cached(&q_bthd, cache, &spec)?
            }
            None => attention(&q_bthd, &self.keys(encoded_bse)?, &self.values(encoded_bse)?, &spec)?,
        };
        self.project(&o_bthd)
    }

    fn queries(&self, x_btm: &Tensor) -> Result<Tensor> {
        self.query_heads(&self.query.forward(x_btm)?)
    }

    fn query_heads(&self, q: &Tensor) -> Result<Tensor> {
        let q_bthd = self.split(q, self.shape.query_heads)?;
        self.query_norm.as_ref().map_or(Ok(q_bthd.clone()), |norm| norm.forward(&q_bthd))
    }

    fn keys(&self, x_bsm: &Tensor) -> Result<Tensor> {
        self.key_heads(&self.key.forward(x_bsm)?)
    }

    fn key_heads(&self, k: &Tensor) -> Result<Tensor> {
        let k_bskd = self.split(k, self.shape.kv_heads)?;
        self.key_norm.as_ref().map_or(Ok(k_bskd.clone()), |norm| norm.forward(&k_bskd))
    }

    fn values(&self, x_bsm: &Tensor) -> Result<Tensor> {
        self.split(&self.value.forward(x_bsm)?, self.shape.kv_heads)
    }

    fn split(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        x.reshape((b, t, heads, self.shape.head_dim))
    }

    fn project(&self, o_bthd: &Tensor) -> Result<Tensor> {
        let (b, t, h, d) = o_bthd.dims4()?;
        self.output.forward(&o_bthd.reshape((b, t, h * d))?)
    }
}

/// The head counts and widths of a config.
pub struct Heads {
    /// h.
    pub query: usize,
    /// k.
    pub kv: usize,
    /// d.
    pub width: usize,
}

impl Heads {
    /// Reads `num_attention_heads`, `num_key_value_heads` (absent: `default_kv`, or as many as queries) and `head_dim`
    /// (absent: `default_width`, or the model width shared out).
    pub fn read(
        keys: &Keys,
        model_width: usize,
        default_kv: Option<usize>,
        default_width: Option<usize>,
    ) -> crate::Result<Heads> {
        let query = keys.size("num_attention_heads", MAX_HEADS)?;
        let kv = keys.size_or("num_key_value_heads", MAX_HEADS, default_kv.unwrap_or(query))?;
        if query % kv != 0 {
            let what = format!("{kv} does not divide num_attention_heads={query}");
            return Err(Error::config(keys.name("num_key_value_heads"), what));
        }
        let width = match keys.optional_size("head_dim", MAX_WIDTH)?.or(default_width) {
            Some(width) => width,
            None if model_width.is_multiple_of(query) => model_width / query,
            None => {
                let what =
                    format!("{query} does not divide hidden_size={model_width}, and there is no head_dim");
                return Err(Error::config(keys.name("num_attention_heads"), what));
            }
        };
        if width % 2 != 0 {
            let what = format!("expected an even width, which rotary positions need, found {width}");
            return Err(Error::config(keys.name("head_dim"), what));
        }
        if query * width > MAX_WIDTH {
            let what = format!("{query} heads of width {width} are more than {MAX_WIDTH} together");
            return Err(Error::config(keys.name("num_attention_heads"), what));
        }
        Ok(Heads { query, kv, width })
    }
}
