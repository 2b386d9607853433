"""Makes the second model of `cargo xtask bench train`: a Llama of 15 million random weights, vocabulary 32,000.

Usage: random_llama.py FOLDER
"""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=32000,
    hidden_size=288,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=6,
    max_position_embeddings=256,
    tie_word_embeddings=True,
)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
