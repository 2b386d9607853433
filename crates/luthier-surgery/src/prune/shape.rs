//! The shape that a model is cut to: how much of every axis, before it is known which units.

use luthier_arch::sizes::{HeadSizes, ModelSizes, StackSizes};

use super::amount::{Amount, Amounts, new_size, step};
use crate::{Error, Result};

/// How much of every axis is kept; none: all of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Layers.
    pub layers: Option<Amounts>,
    /// Width of the residual stream.
    pub hidden: Option<Amounts>,
    /// Inner width of the feed-forward blocks.
    pub ffn: Option<Amounts>,
    /// Query heads.
    pub heads: Option<Amounts>,
    /// Key/value heads, each with its query heads.
    pub kv_groups: Option<Amounts>,
    /// Experts of a mixture.
    pub experts: Option<Amounts>,
}

impl Targets {
    /// Option and value of every axis; none where it is not named.
    pub(super) fn by_axis(&self) -> [(&'static str, Option<String>); 6] {
        let axes = [
            ("layers", &self.layers),
            ("hidden", &self.hidden),
            ("ffn", &self.ffn),
            ("heads", &self.heads),
            ("kv_groups", &self.kv_groups),
            ("experts", &self.experts),
        ];
        axes.map(|(name, amounts)| (name, amounts.as_ref().map(Amounts::text)))
    }
}

/// The shape of one stack.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StackShape {
    pub(super) n_layers: usize,
    pub(super) width: usize,
    /// Of every layer that there was.
    pub(super) inner: Vec<Option<usize>>,
    /// Of every layer that there was.
    pub(super) experts: Vec<Option<usize>>,
    /// Of every layer that there was.
    pub(super) heads: Vec<Option<HeadSizes>>,
}

impl StackShape {
    /// The shape of a stack as it is.
    pub(super) fn of(stack: &StackSizes) -> StackShape {
        let own = stack.layers.iter().find_map(|layer| layer.heads);
        StackShape {
            n_layers: stack.layers.len(),
            width: stack.width,
            inner: stack.layers.iter().map(|layer| layer.inner).collect(),
            experts: stack.layers.iter().map(|layer| layer.experts).collect(),
            // Cross-attention has heads also where self-attention is skipped.
            heads: stack.layers.iter().map(|layer| layer.heads.or(own)).collect(),
        }
    }
}

/// The shape of every stack after cutting to `targets`.
pub(super) fn shapes(sizes: &ModelSizes, targets: &Targets) -> Result<Vec<StackShape>> {
    let has_experts = |stack: &StackSizes| stack.layers.iter().any(|layer| layer.experts.is_some());
    if let Some(experts) = &targets.experts
        && !sizes.stacks.iter().any(has_experts)
    {
        return Err(Error::Use(format!("--experts {}: this model has no experts", experts.text())));
    }
    let n_stacks = sizes.stacks.len();
    let mut shapes = Vec::with_capacity(n_stacks);
    for (at, stack) in sizes.stacks.iter().enumerate() {
        let mut shape = StackShape::of(stack);
        let amount = |axis: &str, amounts: &Option<Amounts>| match amounts {
            Some(amounts) => amounts.of(axis, at, n_stacks).map(Some),
            None => Ok(None),
        };
        if let Some(amount) = amount("layers", &targets.layers)? {
            shape.n_layers = new_size("layers", amount, stack.layers.len(), 1)?;
        }
        let hidden = amount("hidden", &targets.hidden)?;
        let (mut heads, mut groups) =
            (amount("heads", &targets.heads)?, amount("kv-groups", &targets.kv_groups)?);
        match stack.layers.first().and_then(|layer| layer.heads).filter(|_| stack.heads_fill_width) {
            Some(own) => {
                if let Some(count) = heads_of_width(own, hidden, heads, groups)? {
                    shape.width = count * own.width;
                    (heads, groups) = (Some(Amount::Size(count)), None);
                }
            }
            None => {
                if let Some(amount) = hidden {
                    shape.width = new_size("hidden", amount, stack.width, step(stack.width))?;
                }
            }
        }
        if let Some(amount) = amount("ffn", &targets.ffn)? {
            cut_inner(&mut shape, amount)?;
        }
        if let Some(amount) = amount("experts", &targets.experts)? {
            // All layers that have experts have as many.
            for experts in shape.experts.iter_mut().flatten() {
                *experts = new_size("experts", amount, *experts, 1)?;
            }
        }
        cut_heads(&mut shape, heads, groups)?;
        shapes.push(shape);
    }
    Ok(shapes)
}

/// How many heads stay where they share out the width of the residual stream, so that one number says both; none: all.
fn heads_of_width(
    own: HeadSizes,
    hidden: Option<Amount>,
    heads: Option<Amount>,
    groups: Option<Amount>,
) -> Result<Option<usize>> {
    let mut said: Option<(&str, usize)> = None;
    for (axis, amount) in [("heads", heads), ("kv-groups", groups), ("hidden", hidden)] {
        let Some(amount) = amount else { continue };
        let count = if axis == "hidden" {
            let size = new_size(axis, amount, own.query * own.width, own.width)?;
            if !size.is_multiple_of(own.width) {
                return Err(Error::Use(format!(
                    "--hidden {size}: this model's heads share out its width, {} each; wanted a multiple of that",
                    own.width
                )));
            }
            size / own.width
        } else {
            new_size(axis, amount, own.query, 1)?
        };
        match said {
            Some((other, before)) if before != count => {
                return Err(Error::Use(format!(
                    "--{axis}: this model's heads share out its width, {} each; --{other} leaves {before} of them and --{axis} \
                     {count}; give one of the two, the other follows",
                    own.width
                )));
            }
            _ => said = Some((axis, count)),
        }
    }
    Ok(said.map(|(_, count)| count))
}

/// A size that some layers do not reach leaves those as they are.
fn cut_inner(shape: &mut StackShape, amount: Amount) -> Result<()> {
    let Some(widest) = shape.inner.iter().copied().flatten().max() else {
        let what =
            "--ffn: this model has no feed-forward blocks but experts, whose width is kept; cut --experts";
        return Err(Error::Use(what.to_string()));
    };
    new_size("ffn", amount, widest, 1)?;
    for inner in shape.inner.iter_mut().flatten() {
        *inner = match amount {
            Amount::Size(size) => size.min(*inner),
            share => new_size("ffn", share, *inner, step(*inner))?,
        };
    }
    Ok(())
}

fn cut_heads(shape: &mut StackShape, heads: Option<Amount>, groups: Option<Amount>) -> Result<()> {
    if heads.is_none() && groups.is_none() {
        return Ok(());
    }
    let most = |of: fn(&HeadSizes) -> usize| shape.heads.iter().flatten().map(of).max().unwrap_or(0);
    let (most_heads, most_groups) = (most(|heads| heads.query), most(|heads| heads.kv));
    if let Some(amount) = heads {
        new_size("heads", amount, most_heads, 1)?;
    }
    if let Some(amount) = groups {
        new_size("kv-groups", amount, most_groups, 1)?;
    }
    for sizes in shape.heads.iter_mut().flatten() {
        let shared = sizes.query / sizes.kv;
        // Where every head has keys of its own, a head is a group.
        let groups = groups.or(if shared == 1 { heads } else { None });
        let kv = match groups {
            Some(Amount::Size(size)) => size.min(sizes.kv),
            Some(share) => new_size("kv-groups", share, sizes.kv, 1)?,
            None => sizes.kv,
        };
        let query = match heads {
            None => kv * shared,
            Some(Amount::Size(size)) => size.min(sizes.query),
            Some(share) => new_size("heads", share, sizes.query, kv)?.min(kv * shared),
        };
        if query % kv != 0 || query / kv > shared {
            let what = if query % kv != 0 {
                format!(
                    "{kv} key/value groups do not divide it, and heads go evenly from all groups; wanted a multiple of \
                     {kv}, or fewer --kv-groups"
                )
            } else {
                format!("{kv} groups have {} heads between them", kv * shared)
            };
            return Err(Error::Use(format!("--heads {query}: {what}")));
        }
        *sizes = HeadSizes { query, kv, width: sizes.width };
    }
    Ok(())
}

/// Query heads and groups that no layer exceeds: the most groups, each with the most heads of any group.
pub(super) fn most_heads(heads: &[Option<HeadSizes>]) -> (usize, usize) {
    let most = |of: fn(&HeadSizes) -> usize| heads.iter().flatten().map(of).max().unwrap_or(1);
    let kv = most(|heads| heads.kv);
    (most(|heads| heads.query / heads.kv) * kv, kv)
}

/// Heads with at most so many groups, and in each at most as many heads as in each of these.
pub(super) fn at_most(own: HeadSizes, (query, kv): (usize, usize)) -> HeadSizes {
    let kept = kv.min(own.kv);
    HeadSizes { query: (query / kv).min(own.query / own.kv) * kept, kv: kept, width: own.width }
}

/// Scores as parts of their sum, to compare layers of other scales.
pub(super) fn even(scores: &[f64]) -> Vec<f64> {
    let sum: f64 = scores.iter().sum();
    scores.iter().map(|score| if sum > 0.0 { score / sum } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use luthier_arch::sizes::LayerSizes;
    use luthier_checkpoint::layout::StackKind;

    fn sizes(query: usize, kv: usize) -> ModelSizes {
        let heads = Some(HeadSizes { query, kv, width: 4 });
        let layer = LayerSizes { inner: Some(96), experts: None, heads, window: None };
        let stack = StackSizes {
            kind: StackKind::Decoder,
            width: 64,
            embedding_scale: 1.0,
            norm_eps: 1e-6,
            norm_offset: 0.0,
            heads_fill_width: false,
            layers: vec![layer; 4],
        };
        ModelSizes { stacks: vec![stack], state_scale: 1.0 }
    }

    fn heads(query: usize, kv: usize, heads: Option<&str>, groups: Option<&str>) -> Result<(usize, usize)> {
        let amounts = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        let targets = Targets { heads: amounts(heads), kv_groups: amounts(groups), ..Targets::default() };
        let heads = shapes(&sizes(query, kv), &targets)?[0].heads[0].unwrap();
        Ok((heads.query, heads.kv))
    }

    #[test]
    fn heads_follow_groups() {
        assert_eq!(heads(9, 3, Some("6"), None).unwrap(), (6, 3));
        assert_eq!(heads(9, 3, None, Some("2")).unwrap(), (6, 2));
        assert_eq!(heads(9, 3, Some("4"), Some("2")).unwrap(), (4, 2));
        assert_eq!(heads(9, 3, Some("0.7"), None).unwrap(), (6, 3));
        assert_eq!(heads(4, 4, Some("3"), None).unwrap(), (3, 3));
        assert!(heads(9, 3, Some("5"), None).unwrap_err().to_string().contains("do not divide"));
        assert!(heads(9, 3, Some("5"), Some("2")).unwrap_err().to_string().contains("do not divide"));
        assert!(heads(9, 3, Some("9"), Some("1")).unwrap_err().to_string().contains("3 heads between them"));
        assert!(heads(9, 3, None, Some("4")).unwrap_err().to_string().contains("at most the 3"));
    }

    #[test]
    fn the_most_heads_cut_no_layer() {
        let own = |query, kv| HeadSizes { query, kv, width: 4 };
        let layers = [Some(own(6, 2)), None, Some(own(4, 4)), Some(own(2, 1))];
        let most = most_heads(&layers);
        assert_eq!(most, (12, 4));
        assert!(layers.iter().flatten().all(|layer| at_most(*layer, most) == *layer));
        assert_eq!(at_most(own(6, 2), (4, 4)), own(2, 2));
        assert_eq!(at_most(own(6, 2), (3, 1)), own(3, 1));
    }

    #[test]
    fn sizes_beyond_the_model_and_experts_of_none_are_refused() {
        let target = |text: &str| Some(text.parse().unwrap());
        for (targets, wanted) in [
            (Targets { layers: target("5"), ..Targets::default() }, "at most the 4"),
            (Targets { hidden: target("65"), ..Targets::default() }, "at most the 64"),
            (Targets { ffn: target("97"), ..Targets::default() }, "at most the 96"),
            (Targets { experts: target("2"), ..Targets::default() }, "no experts"),
            (Targets { ffn: target("4,4"), ..Targets::default() }, "one stack"),
        ] {
            assert!(shapes(&sizes(4, 2), &targets).unwrap_err().to_string().contains(wanted), "{wanted}");
        }
    }
}
