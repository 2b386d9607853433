"""Our encoder-decoder in PyTorch, put together from the layers of the parents' reference implementations."""

from types import SimpleNamespace

import torch
from torch import nn
from transformers import LlamaModel, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb, repeat_kv


def attend(query, key, value, bias, scale):
    """query [b, h, t, d], key and value [b, h, s, d], bias broadcast to [b, h, t, s]."""
    scores = query @ key.transpose(2, 3) * scale + bias
    return scores.softmax(-1) @ value


class CrossAttention(nn.Module):
    def __init__(self, config, encoder_width):
        super().__init__()
        heads, kv_heads, self.head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.groups = heads // kv_heads
        self.q_proj = nn.Linear(config.hidden_size, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(encoder_width, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(encoder_width, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm = Qwen3RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = Qwen3RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(self, x, states, bias):
        split = lambda y: y.view(*y.shape[:2], -1, self.head_dim)
        query = self.q_norm(split(self.q_proj(x))).transpose(1, 2)
        key = repeat_kv(self.k_norm(split(self.k_proj(states))).transpose(1, 2), self.groups)
        value = repeat_kv(split(self.v_proj(states)).transpose(1, 2), self.groups)
        out = attend(query, key, value, bias, self.head_dim**-0.5)
        return self.o_proj(out.transpose(1, 2).reshape(*x.shape[:2], -1))


class JoinedModel(nn.Module):
    """Encoder: a Llama that sees its whole input. Decoder: a Qwen3 with cross-attention after self-attention."""

    def __init__(self, encoder_config, decoder_config):
        super().__init__()
        self.model = nn.Module()
        self.model.encoder = LlamaModel(encoder_config)
        self.model.decoder = Qwen3Model(decoder_config)
        for layer in self.model.decoder.layers:
            layer.cross_attn = CrossAttention(decoder_config, encoder_config.hidden_size)
            layer.cross_attn_layernorm = Qwen3RMSNorm(decoder_config.hidden_size, decoder_config.rms_norm_eps)

    def encode(self, ids, bias):
        stack = self.model.encoder
        x = stack.embed_tokens(ids)
        angles = stack.rotary_emb(x, torch.arange(ids.shape[1])[None])
        for layer in stack.layers:
            x = layer(x, attention_mask=bias, position_embeddings=angles)
        return stack.norm(x)

    def decode(self, ids, states, cross_bias):
        stack = self.model.decoder
        x = stack.embed_tokens(ids)
        t = ids.shape[1]
        angles = stack.rotary_emb(x, torch.arange(t)[None])
        causal = torch.full((t, t), float("-inf")).triu(1)[None, None]
        for layer in stack.layers:
            y, _ = layer.self_attn(layer.input_layernorm(x), position_embeddings=angles, attention_mask=causal)
            x = x + y
            x = x + layer.cross_attn(layer.cross_attn_layernorm(x), states, cross_bias)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return stack.norm(x)

    def forward(self, input_ids, attention_mask, decoder_input_ids, **_):
        bias = torch.where(attention_mask[:, None, None, :] == 1, 0.0, float("-inf"))
        states = self.encode(input_ids, bias)
        x = self.decode(decoder_input_ids, states, bias)
        return SimpleNamespace(logits=x @ self.model.decoder.embed_tokens.weight.T)


def joined_config(encoder, decoder):
    return {
        "model_type": "luthier_encoder_decoder",
        "is_encoder_decoder": True,
        "decoder_start_token_id": 1,
        "tie_word_embeddings": True,
        "tie_encoder_embeddings": False,
        "encoder": encoder.to_dict(),
        "decoder": decoder.to_dict(),
    }
