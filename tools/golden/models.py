"""Makes golden/<name>/: tiny random models with awkward shapes, and what the reference computes with them.

Each folder holds config.json, model.safetensors and golden.safetensors: inputs, logits, loss and every gradient, f32
on CPU with eager attention. Run `python tools/golden/models.py golden` with the versions of requirements.txt.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
)

from joined import JoinedModel, joined_config

VOCABULARY = 61
TOKENS = 11


def randomize(model, seed):
    """Weights large enough for soft caps and softmaxes to bend, norms and biases away from their neutral values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            draw = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(draw * 0.2)
            elif "norm" in name:
                neutral = parameter.mean().round()
                parameter.copy_(neutral + draw * 0.3)
            elif name.endswith(".q.weight"):
                # T5 does not scale its scores: larger ones would only show rounding.
                parameter.copy_(draw * 0.1)
            elif "relative_attention_bias" in name:
                parameter.copy_(draw)
            else:
                parameter.copy_(draw * 0.25)
    return model.eval()


def tokens(seed, rows, length, low=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, VOCABULARY, (rows, length), generator=generator)


def targets_of(ids, seed):
    """Next tokens, a few of them unscored."""
    targets = torch.cat([ids[:, 1:], torch.full((ids.shape[0], 1), -100)], dim=1)
    generator = torch.Generator().manual_seed(seed)
    return torch.where(torch.rand(ids.shape, generator=generator) < 0.2, -100, targets)


def backward(model, logits, targets):
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-100)
    model.zero_grad()
    loss.backward()
    gradients = {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach().reshape(1), **gradients}


def write(folder, config, weights, golden):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    plain = lambda tensors: {
        name: (t.to(torch.int32) if t.dtype == torch.int64 else t.detach().float()).contiguous().clone()
        for name, t in tensors.items()
    }
    save_file(plain(weights), folder / "model.safetensors", metadata={"format": "pt"})
    save_file(plain(golden), folder / "golden.safetensors")


def decoder_only(folder, model, seed):
    randomize(model, seed)
    ids = tokens(seed + 1, 2, TOKENS)
    targets = targets_of(ids, seed + 2)
    logits = model(input_ids=ids, use_cache=False).logits
    golden = {"ids": ids, "targets": targets, "logits": logits, **backward(model, logits, targets)}
    config = model.config.to_dict()
    weights = dict(model.named_parameters())
    write(folder, config, weights, golden)


def with_experts(folder, model, seed):
    """The loss with that of unevenly busy experts; names and tensors as files have them, each expert on its own."""
    randomize(model, seed)
    ids = tokens(seed + 1, 2, TOKENS)
    targets = targets_of(ids, seed + 2)
    output = model(input_ids=ids, use_cache=False, output_router_logits=True)
    loss = F.cross_entropy(output.logits.reshape(-1, VOCABULARY), targets.reshape(-1), ignore_index=-100)
    loss = loss + model.config.router_aux_loss_coef * output.aux_loss
    model.zero_grad()
    loss.backward()
    parameters = dict(model.named_parameters())
    weights = each_expert(parameters, model.config.model_type)
    gradients = each_expert({name: p.grad for name, p in parameters.items()}, model.config.model_type)
    golden = {"ids": ids, "targets": targets, "logits": output.logits, "loss": loss.detach().reshape(1)}
    golden |= {"aux_loss": output.aux_loss.reshape(1)}
    golden |= {f"grad.{name}": gradient for name, gradient in gradients.items()}
    write(folder, model.config.to_dict(), weights, golden)


def each_expert(tensors, model_type):
    mixtral = model_type == "mixtral"
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    split = {}
    for name, tensor in tensors.items():
        name = name.replace(".mlp.", ".block_sparse_moe.") if mixtral else name
        module = name.rsplit(".", 1)[0]
        for number, own in enumerate(tensor) if ".experts." in name else ():
            if name.endswith("gate_up_proj"):
                split[f"{module}.{number}.{gate}.weight"], split[f"{module}.{number}.{up}.weight"] = own.chunk(2)
            else:
                split[f"{module}.{number}.{down}.weight"] = own
        if ".experts." not in name:
            split[name] = tensor
    return split


def encoder_decoder(folder, model, config, seed):
    randomize(model, seed)
    encoder_ids = tokens(seed + 1, 2, TOKENS)
    mask = torch.ones_like(encoder_ids)
    mask[1, -3:] = 0
    ids = tokens(seed + 2, 2, TOKENS - 2)
    targets = targets_of(ids, seed + 3)
    logits = model(
        input_ids=encoder_ids,
        attention_mask=mask,
        decoder_input_ids=ids,
        decoder_attention_mask=torch.ones_like(ids),
        use_cache=False,
    ).logits
    golden = {"encoder_ids": encoder_ids, "encoder_mask": mask, "ids": ids, "targets": targets}
    golden |= {"logits": logits, **backward(model, logits, targets)}
    if isinstance(model, T5GemmaForConditionalGeneration):
        with_pad = tokens(seed + 4, 2, TOKENS)
        with_pad[0, 4] = 0
        logits = model(input_ids=with_pad, decoder_input_ids=ids).logits
        golden |= {"pad_encoder_ids": with_pad, "pad_logits": logits}
    write(folder, config, dict(model.named_parameters()), golden)


def t5(folder, model, config, seed):
    """`config` as files of that version have it; an untied head stays untied whatever the class does by itself."""
    if not config["tie_word_embeddings"]:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    encoder_decoder(folder, model, model.config.to_dict() | config, seed)


COMMON = dict(vocab_size=VOCABULARY, attn_implementation="eager", max_position_embeddings=64, pad_token_id=0)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
GEMMA = dict(
    vocab_size=VOCABULARY,
    max_position_embeddings=64,
    sliding_window=4,
    attn_logit_softcapping=3.0,
    final_logit_softcapping=5.0,
    query_pre_attn_scalar=7,
    hidden_activation="gelu_pytorch_tanh",
)


def main(root):
    llama = dict(hidden_size=40, num_attention_heads=5, num_key_value_heads=1, head_dim=12, num_hidden_layers=2)
    llama |= dict(intermediate_size=52, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3)
    decoder_only(root / "llama", LlamaForCausalLM(LlamaConfig(**COMMON, **llama)), 1)

    tied = dict(hidden_size=36, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=2)
    tied |= dict(intermediate_size=44, tie_word_embeddings=True, rms_norm_eps=1e-5)
    tied |= dict(rope_parameters=dict(rope_type="default", rope_theta=100000.0))
    decoder_only(root / "llama-tied", LlamaForCausalLM(LlamaConfig(**COMMON, **tied)), 11)

    mistral = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=10, num_hidden_layers=2)
    mistral |= dict(intermediate_size=44, sliding_window=4)
    decoder_only(root / "mistral", MistralForCausalLM(MistralConfig(**COMMON, **mistral)), 21)

    qwen2 = dict(hidden_size=36, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=3)
    qwen2 |= dict(intermediate_size=40, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    decoder_only(root / "qwen2", Qwen2ForCausalLM(Qwen2Config(**COMMON, **qwen2)), 31)

    qwen3 = dict(hidden_size=40, num_attention_heads=5, num_key_value_heads=1, head_dim=14, num_hidden_layers=2)
    qwen3 |= dict(intermediate_size=44, tie_word_embeddings=True)
    decoder_only(root / "qwen3", Qwen3ForCausalLM(Qwen3Config(**COMMON, **qwen3)), 41)

    moe = dict(experts_implementation="eager", output_router_logits=True, router_aux_loss_coef=0.3, num_experts_per_tok=2)
    mixtral = dict(hidden_size=20, num_attention_heads=3, num_key_value_heads=1, head_dim=6, num_hidden_layers=2)
    mixtral |= dict(intermediate_size=14, sliding_window=4, num_local_experts=5)
    with_experts(root / "mixtral", MixtralForCausalLM(MixtralConfig(**COMMON, **mixtral, **moe)), 111)

    # Probabilities that do not sum to 1, a shared expert, every second layer with a window.
    qwen2_moe = dict(hidden_size=24, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=3)
    qwen2_moe |= dict(intermediate_size=20, moe_intermediate_size=10, shared_expert_intermediate_size=14)
    qwen2_moe |= dict(num_experts=4, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with_experts(root / "qwen2_moe", Qwen2MoeForCausalLM(Qwen2MoeConfig(**COMMON, **qwen2_moe, **moe)), 121)

    # A layer without experts, weights that sum to 1, a tied head.
    qwen3_moe = dict(hidden_size=20, num_attention_heads=3, num_key_value_heads=1, head_dim=8, num_hidden_layers=3)
    qwen3_moe |= dict(intermediate_size=18, moe_intermediate_size=10, num_experts=6, mlp_only_layers=[1])
    qwen3_moe |= dict(norm_topk_prob=True, tie_word_embeddings=True, attention_bias=True, use_sliding_window=True)
    qwen3_moe |= dict(sliding_window=5) | moe | dict(num_experts_per_tok=3)
    with_experts(root / "qwen3_moe", Qwen3MoeForCausalLM(Qwen3MoeConfig(**COMMON, **qwen3_moe)), 131)

    gemma2 = dict(hidden_size=40, num_attention_heads=5, num_key_value_heads=1, head_dim=12, num_hidden_layers=3)
    gemma2 |= dict(intermediate_size=44)
    config = Gemma2Config(**GEMMA, **gemma2, attn_implementation="eager")
    decoder_only(root / "gemma2", Gemma2ForCausalLM(config), 51)

    encoder = dict(**GEMMA, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=10)
    encoder |= dict(num_hidden_layers=2, intermediate_size=44)
    decoder = dict(**GEMMA, hidden_size=40, num_attention_heads=5, num_key_value_heads=1, head_dim=12)
    decoder |= dict(num_hidden_layers=2, intermediate_size=36)
    config = T5GemmaConfig(encoder=encoder, decoder=decoder, vocab_size=VOCABULARY)
    config._attn_implementation = "eager"
    model = T5GemmaForConditionalGeneration(config)
    encoder_decoder(root / "t5gemma", model, model.config.to_dict(), 61)

    # More tokens than distances with a bucket of their own, and farther than the last bucket begins.
    sizes = dict(vocab_size=VOCABULARY, d_model=36, d_kv=7, d_ff=44, num_layers=2, num_decoder_layers=1, num_heads=5)
    sizes |= dict(relative_attention_num_buckets=8, relative_attention_max_distance=7, decoder_start_token_id=0)
    for name, seed, extra in (("t5", 81, dict()), ("t5-v1_1", 91, dict(feed_forward_proj="gated-gelu"))):
        head = dict(tie_word_embeddings=name == "t5")
        config = T5Config(**sizes, **extra, **head)
        config._attn_implementation = "eager"
        t5(root / name, T5ForConditionalGeneration(config), head, seed)
    config = MT5Config(**sizes, feed_forward_proj="gated-silu")
    config._attn_implementation = "eager"
    t5(root / "mt5", MT5ForConditionalGeneration(config), dict(tie_word_embeddings=False), 101)

    encoder = LlamaConfig(**COMMON, **(tied | dict(num_hidden_layers=2)))
    decoder = Qwen3Config(**COMMON, **(qwen3 | dict(tie_word_embeddings=True)))
    model = JoinedModel(encoder, decoder)
    encoder_decoder(root / "encoder-decoder", model, joined_config(encoder, decoder), 71)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
