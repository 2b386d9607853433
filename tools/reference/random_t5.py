"""Makes the model of `cargo xtask bench encdec`: T5-small's shape (60.5 million weights), random, with a word for each id.

Usage: random_t5.py FOLDER
"""

import sys

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
config = T5Config(
    vocab_size=32128,
    d_model=512,
    d_kv=64,
    d_ff=2048,
    num_layers=6,
    num_heads=8,
    feed_forward_proj="relu",
    decoder_start_token_id=0,
)
model = T5ForConditionalGeneration(config)
with torch.no_grad():
    # Fresh embeddings outweigh all layers, so that a decoder repeats its start token. Smaller ones let the layers speak;
    # the norm before the head keeps the best logits apart.
    model.shared.weight.mul_(0.05)
    model.decoder.final_layer_norm.weight.mul_(100)
model.save_pretrained(sys.argv[1])
# CTranslate2's converter asks for a tokenizer, whose words are what its translator reads.
words = ["<pad>", "</s>", "<unk>"] + [f"t{id}" for id in range(3, config.vocab_size)]
tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
).save_pretrained(sys.argv[1])
