//! The parts that architectures are put together from. Each shape describes a part: the tensors it needs (`specs`) and
//! the running part made of them (`build`), so that a layout and a forward pass cannot drift apart.

pub mod attention;
pub mod decoder_only;
pub mod encoder_decoder;
pub mod encoder_only;
pub mod experts;
pub mod feed_forward;
pub mod kept;
pub mod layer;
pub mod layer_norm;
pub mod linear;
pub mod mlp;
pub mod names;
pub mod norm;
pub mod pass;
pub mod per_layer;
pub mod rope;
mod running_encoder;
mod running_model;
pub mod stack;
pub mod stack_rules;
pub mod t5;
pub mod window;
