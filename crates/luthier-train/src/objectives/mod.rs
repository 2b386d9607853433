//! What training minimises, one objective a file: windows of text become rows of inputs and targets.
//!
//! Every objective's loss is `-1/N sum_i log p(y_i | x)` over the N scored targets of a step; what differs is what
//! the model reads and which tokens are targets.

use luthier_text::Tokenizer;

use crate::batch::Row;
use crate::random::Random;
use crate::recipe::{ObjectiveName, Recipe};
use crate::windows::Window;
use crate::{Error, Result};

pub mod next_token;
pub mod prefixlm;
pub mod ul2;

/// What an objective has to know of the model that it trains.
#[derive(Clone, Copy, Debug)]
pub struct ModelShape {
    /// The first decoder token of an encoder-decoder; none for a decoder-only model.
    pub decoder_start_token: Option<u32>,
    /// Whether there is an encoder.
    pub is_encoder_decoder: bool,
    /// Rows of the embedding.
    pub vocab_size: usize,
}

/// Makes rows of windows.
pub trait Objective: Send + Sync {
    /// One row of one window. `step`: draws shared by all sequences of the step (each row gets the same fresh
    /// stream); `sequence`: draws of this sequence alone.
    fn row(&self, window: &Window, step: &mut Random, sequence: &mut Random) -> Row;

    /// The row that validation scores: the same at every validation.
    fn validation_row(&self, window: &Window, sequence: &mut Random) -> Row;
}

/// The objective of a resolved recipe.
pub fn of_recipe(
    recipe: &Recipe,
    shape: ModelShape,
    tokenizer: Option<&Tokenizer>,
) -> Result<Box<dyn Objective>> {
    if shape.is_encoder_decoder
        && shape.decoder_start_token.is_none()
        && recipe.objective == ObjectiveName::PrefixLm
    {
        let what = "the encoder-decoder has no decoder_start_token_id; set it in config.json";
        return Err(Error::recipe("objective", what));
    }
    match recipe.objective {
        ObjectiveName::NextToken => {
            next_token::NextToken::new(shape).map(|o| Box::new(o) as Box<dyn Objective>)
        }
        ObjectiveName::PrefixLm => {
            let split = recipe.prefixlm.as_ref().expect("a resolved recipe says how prefixlm splits");
            Ok(Box::new(prefixlm::PrefixLm::new(split, shape)))
        }
        ObjectiveName::Ul2 => {
            let mixture = recipe.ul2.as_ref().expect("a resolved recipe says what ul2 mixes");
            Ok(Box::new(ul2::Ul2::new(mixture, shape, tokenizer)?))
        }
    }
}
