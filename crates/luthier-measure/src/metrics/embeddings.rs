//! Embeddings of texts: the states of their tokens pooled into one (arXiv:1908.10084 for the mean).

use luthier_arch::model::{Model, TokenBatch};
use luthier_checkpoint::sentence::{Dense, Pooling};
use luthier_generate::generate::check_ids;

use crate::{Error, Result};

// b texts of one length, t tokens, m width

/// Tokens that run at once.
const BATCH_TOKENS: usize = 4096;

/// Embeddings of several texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// `[texts * width]`, row-major, in the order of the texts.
    pub values: Vec<f32>,
    /// m.
    pub width: usize,
}

/// The embedding of each text: the final states of a decoder-only or encoder-only model, those of an encoder-decoder's
/// encoder, pooled over all tokens of the text, sent through the linear steps of `dense`, `normalized` to length 1 on
/// request. Texts of one length run together, so that there is no padding.
///
/// # Errors
/// A text without tokens, ids that the model cannot read, states that are not finite, a linear step for states of another
/// width.
pub fn embeddings(
    model: &dyn Model,
    texts: &[Vec<u32>],
    pooling: Pooling,
    dense: &[Dense],
    normalized: bool,
) -> Result<Embeddings> {
    for ids in texts {
        check_ids(model, "text", ids)?;
    }
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&at| texts[at].len());
    let mut rows: Vec<Vec<f32>> = vec![Vec::new(); texts.len()];
    let mut rest = &order[..];
    while let Some(&first) = rest.first() {
        let tokens = texts[first].len();
        let same = rest.iter().take_while(|&&at| texts[at].len() == tokens).count();
        let (batch, after) = rest.split_at(same.min((BATCH_TOKENS / tokens).max(1)));
        for (&at, row) in batch.iter().zip(pooled_batch(model, texts, batch, pooling)?) {
            rows[at] = finished(through(row, dense)?, at, normalized)?;
        }
        rest = after;
    }
    let width = rows.first().map_or(0, Vec::len);
    Ok(Embeddings { values: rows.concat(), width })
}

fn pooled_batch(
    model: &dyn Model,
    texts: &[Vec<u32>],
    batch: &[usize],
    pooling: Pooling,
) -> Result<Vec<Vec<f64>>> {
    let ids = batch.iter().flat_map(|&at| texts[at].iter().copied()).collect();
    let tokens = TokenBatch { ids, rows: batch.len(), segments: None };
    let states_btm = match model.is_encoder_decoder() {
        true => model.encode(&tokens)?.states,
        false => model.hidden(&tokens, None, None)?,
    };
    let (_, t, m) = states_btm.dims3()?;
    let states = states_btm.flatten_all()?.to_vec1::<f32>()?;
    Ok(states.chunks_exact(t * m).map(|text| pooled(text, m, pooling)).collect())
}

/// The states `[t * m]` of one text as one, [m].
fn pooled(states: &[f32], width: usize, pooling: Pooling) -> Vec<f64> {
    let tokens = states.chunks_exact(width);
    let n_tokens = tokens.len() as f64;
    let wide = |row: Option<&[f32]>| row.unwrap_or_default().iter().map(|value| f64::from(*value)).collect();
    let mut result = vec![0f64; width];
    match pooling {
        Pooling::First => return wide(tokens.clone().next()),
        Pooling::Last => return wide(tokens.last()),
        Pooling::Max => {
            result.fill(f64::NEG_INFINITY);
            for row in tokens {
                // A NaN stays one, and is found below.
                let larger = |(most, value): (&mut f64, &f32)| {
                    if value.is_nan() || f64::from(*value) > *most {
                        *most = f64::from(*value);
                    }
                };
                result.iter_mut().zip(row).for_each(larger);
            }
        }
        Pooling::Mean | Pooling::MeanOfRoot => {
            for row in tokens {
                result.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            }
            let divisor = if pooling == Pooling::Mean { n_tokens } else { n_tokens.sqrt() };
            result.iter_mut().for_each(|sum| *sum /= divisor);
        }
    }
    result
}

/// What the linear steps make of a pooled state.
fn through(row: Vec<f64>, dense: &[Dense]) -> Result<Vec<f64>> {
    dense.iter().try_fold(row, |row, step| {
        if step.inputs != row.len() {
            let (module, wanted, width) = (step.place.clone(), step.inputs, row.len());
            return Err(Error::ModuleWidth { module, wanted, width });
        }
        Ok(step.apply(&row))
    })
}

fn finished(mut row: Vec<f64>, text: usize, normalized: bool) -> Result<Vec<f32>> {
    if let Some(value) = row.iter().copied().find(|value| !value.is_finite()) {
        return Err(Error::EmbeddingNotFinite { text: text + 1, value });
    }
    if normalized {
        // As torch's normalize: a vector of zeros stays one.
        let length = row.iter().map(|value| value * value).sum::<f64>().sqrt().max(1e-12);
        row.iter_mut().for_each(|value| *value /= length);
    }
    Ok(row.into_iter().map(|value| value as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_pool_as_worked_by_hand() {
        let states = [1.0, -2.0, 3.0, 6.0, 5.0, 2.0, 7.0, 2.0];
        for (pooling, wanted) in [
            (Pooling::Mean, [4.0, 2.0]),
            (Pooling::MeanOfRoot, [8.0, 4.0]),
            (Pooling::First, [1.0, -2.0]),
            (Pooling::Last, [7.0, 2.0]),
            (Pooling::Max, [7.0, 6.0]),
        ] {
            assert_eq!(pooled(&states, 2, pooling), wanted, "{}", pooling.name());
        }
        assert_eq!(finished(vec![3.0, 4.0], 0, true).unwrap(), [0.6, 0.8]);
        assert_eq!(finished(vec![0.0, 0.0], 0, true).unwrap(), [0.0, 0.0]);
        let error = finished(pooled(&[f32::NAN, 1.0], 2, Pooling::Max), 4, false).unwrap_err().to_string();
        assert!(error.contains("text 5") && error.contains("NaN"), "{error}");
    }
}
