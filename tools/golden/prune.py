"""Makes golden/prune: what a plain implementation of the importance formulas computes on the models of models.py, the
logits of what a plain implementation of pruning leaves of them, opened by transformers, and a Llama whose layers differ.

golden/prune/<model>.safetensors: `ids`, windows of equal length; the scores by luthier's names (docs/formats.md), mean of
absolute values over tokens and root of the sum of squares over windows; `pruned_ids` (and `pruned_encoder_ids`) with
`pruned_logits`, after cutting to SHAPES. golden/uneven: as in models.py. Run `python tools/golden/prune.py golden` behind
models.py.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from models import COMMON, backward, randomize, targets_of, tokens, write

WINDOW = 10
WINDOWS = 3
# What `luthier prune` is told; encoder and decoder where there are two.
SHAPES = {
    "llama-tied": dict(layers=[2], hidden=[24], ffn=[30], groups=[3], heads=[6]),
    "qwen3": dict(layers=[1], hidden=[30], ffn=[30], groups=[1], heads=[3]),
    "gemma2": dict(layers=[2], hidden=[30], ffn=[20], groups=[1], heads=[3]),
    "t5": dict(layers=[1, 1], hidden=[24, 24], ffn=[20, 20], groups=[3, 3], heads=[3, 3]),
    "t5gemma": dict(layers=[1, 2], hidden=[24, 30], ffn=[20, 16], groups=[1, 1], heads=[2, 3]),
}


def load(folder):
    config = AutoConfig.from_pretrained(folder, attn_implementation="eager")
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return kind.from_pretrained(folder, config=config, dtype=torch.float32).eval()


def l2(per_window):
    return torch.stack(per_window).square().sum(0).sqrt()


class Watch:
    """Keeps, by name of the module, what each window gives."""

    def __init__(self, model, heads):
        self.scores, self.handles = {}, []
        for name, module in model.named_modules():
            last = name.split(".")[-1]
            if isinstance(module, nn.Linear) and last != "out_proj" and "lm_head" not in name:
                self.handles.append(module.register_forward_pre_hook(self.matrix(name, last, heads)))
            elif "Norm" in type(module).__name__ and last not in ("q_norm", "k_norm"):
                self.handles.append(module.register_forward_hook(self.norm(name)))
            elif type(module).__name__ in LAYERS:
                self.handles.append(module.register_forward_hook(self.layer(name)))

    def keep(self, key, value):
        self.scores.setdefault(key, []).append(value.detach())

    def matrix(self, name, last, heads):
        def hook(_, inputs):
            x = inputs[0][0]
            weight = name + ".weight"
            self.keep(f"inputs.{weight}", x.square().sum(0).sqrt())
            if last in ("o_proj", "o"):
                query, kv = heads(name)
                for axis, count in (("heads", query), ("groups", kv)):
                    norms = x.reshape(x.shape[0], count, -1).norm(dim=-1)
                    self.keep(f"{axis}.{weight}", norms.mean(0))
            if last in ("down_proj", "wo"):
                self.keep(f"neurons.{weight}", x.abs().mean(0))

        return hook

    def norm(self, name):
        def hook(_, inputs, output):
            x, y = inputs[0][0], output[0]
            self.keep(f"channels.{name}.weight", y.abs().mean(0))
            self.keep(f"energy.{name}.weight", (x.square() / x.square().sum(-1, keepdim=True)).sum(0))

        return hook

    def layer(self, name):
        def hook(_, inputs, output):
            y = output[0] if isinstance(output, tuple) else output
            self.keep(f"layer.{name}", torch.cosine_similarity(inputs[0][0], y[0], dim=-1).sum())

        return hook


LAYERS = (
    "LlamaDecoderLayer",
    "Qwen3DecoderLayer",
    "Gemma2DecoderLayer",
    "T5Block",
    "T5GemmaEncoderLayer",
    "T5GemmaDecoderLayer",
)


def stack_configs(config):
    """The config of each stack, and in front of its names."""
    if config.model_type == "t5gemma":
        return [(config.encoder, "model.encoder."), (config.decoder, "model.decoder.")]
    if config.model_type == "t5":
        return [(config, "encoder."), (config, "decoder.")]
    return [(config, "model.")]


def importances(model, ids):
    config = model.config

    def heads(name):
        stack = next(stack for stack, prefix in stack_configs(config) if name.startswith(prefix))
        if config.model_type == "t5":
            return stack.num_heads, stack.num_heads
        return stack.num_attention_heads, stack.num_key_value_heads

    watch = Watch(model, heads)
    with torch.no_grad():
        for window in ids:
            if config.is_encoder_decoder:
                half = len(window) // 2
                start = torch.tensor([config.decoder_start_token_id if config.model_type == "t5" else START])
                decoder = torch.cat([start, window[half:-1]])
                model(input_ids=window[None, :half], decoder_input_ids=decoder[None], use_cache=False)
            else:
                model(input_ids=window[None], use_cache=False)
    for handle in watch.handles:
        handle.remove()
    scores = {}
    stacks = [prefix for _, prefix in stack_configs(config)]
    rows = {p: len(ids) * (WINDOW // 2 if len(stacks) == 2 else WINDOW) for p in stacks}
    influence = {prefix: {} for prefix in stacks}
    for key, values in watch.scores.items():
        axis, name = key.split(".", 1)
        prefix = next(prefix for prefix in stacks if name.startswith(prefix))
        if axis == "layer":
            influence[prefix][int(name.split(".")[-1])] = 1 - sum(values) / rows[prefix]
        elif axis == "energy":
            scores[key] = sum(values) / rows[prefix]
        else:
            scores[key] = l2(values)
    for prefix, layers in influence.items():
        stack = "encoder" if "encoder" in prefix else "decoder"
        scores[f"block_influence.{stack}"] = torch.stack([layers[i] for i in range(len(layers))])
    return scores


START = 2


def top(scores, n):
    return torch.sort(torch.topk(scores, n).indices).values


def norm_before_block(name):
    """Whether a norm stands in front of a block or the head."""
    behind = ("post_attention_layernorm", "post_self_attn_layernorm", "post_cross_attn_layernorm", "post_feedforward_layernorm")
    return not any(part in name for part in behind)


def prune(model, scores, shape):
    """A state dictionary and config of what is left."""
    config, weights = copy.deepcopy(model.config), model.state_dict()
    kind = config.model_type
    is_t5, stacks = kind == "t5", stack_configs(model.config)
    gemma = kind in ("gemma2", "t5gemma")
    block = "block" if is_t5 else "layers"
    pruned, kept = {}, {}
    layer_of = lambda name: int(name.split(f"{block}.")[1].split(".")[0]) if f"{block}." in name else None
    for (_, prefix), n_layers in zip(stacks, shape["layers"]):
        stack = "encoder" if "encoder" in prefix else "decoder"
        kept[prefix] = top(scores[f"block_influence.{stack}"], n_layers).tolist()
    channels = {}
    for at, (stack, prefix) in enumerate(stacks):
        total = 0
        for key, value in scores.items():
            name = key.removeprefix("channels.")
            own = is_t5 or name.startswith(prefix)
            if not key.startswith("channels.") or not own:
                continue
            owner = next(p for _, p in stacks if name.startswith(p))
            layer = layer_of(name)
            counts = norm_before_block(name) or (kind in ("llama", "qwen3"))
            if counts and (layer is None or layer in kept[owner]):
                total = total + value
        channels[prefix] = top(total, shape["hidden"][at])
    rows = lambda heads, width: torch.cat([torch.arange(h * width, (h + 1) * width) for h in heads.tolist()])
    t5_heads = {}
    for name, weight in weights.items():
        prefix = next((p for _, p in stacks if name.startswith(p)), None)
        layer = layer_of(name)
        if prefix is None:
            # The shared embedding, a head.
            c = channels[stacks[-1][1]]
            if not (config.tie_word_embeddings and "lm_head" in name):
                pruned[name] = weight[:, c] * 1.0
            continue
        at = [p for _, p in stacks].index(prefix)
        stack = stacks[at][0]
        c, old = channels[prefix], stack.d_model if is_t5 else stack.hidden_size
        ratio = old / len(c)
        if "embed_tokens" in name:
            pruned[name] = weight[:, c] * (ratio**0.5 if gemma else 1.0)
            continue
        if "relative_attention_bias" not in name and layer is not None and layer not in kept[prefix]:
            continue
        target = name.replace(f"{block}.{layer}.", f"{block}.{kept[prefix].index(layer)}.") if layer in kept[prefix] else name
        if weight.dim() == 1:
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                pruned[target] = weight
                continue
            factor = (scores[f"energy.{name}"][c].sum() / scores[f"energy.{name}"].sum() * ratio).sqrt()
            final = name in (prefix + "norm.weight", prefix + "final_layer_norm.weight")
            if final and "encoder" not in prefix:
                if gemma and config.tie_word_embeddings:
                    factor = factor / ratio**0.5
                if is_t5 and config.tie_word_embeddings:
                    factor = factor / ratio**0.5
            offset = 1.0 if gemma else 0.0
            pruned[target] = (weight[c] + offset) * factor - offset
            continue
        parts = name.split(".")
        module, last = ".".join(parts[:-2]), parts[-2]
        source = channels[stacks[0][1]] if ("cross_attn" in name or "EncDec" in name) and last in ("k_proj", "v_proj", "k", "v") else c
        if last in ("gate_proj", "up_proj", "wi", "wi_0", "wi_1", "down_proj", "wo"):
            down = module + (".wo" if is_t5 else ".down_proj") + ".weight"
            neurons = top(scores[f"neurons.{down}"], shape["ffn"][at])
            pruned[target] = weight[c][:, neurons] if last in ("down_proj", "wo") else weight[neurons][:, c]
            continue
        output = module + (".o" if is_t5 else ".o_proj") + ".weight"
        query, kv = scores_of_heads(scores, output, shape, at, t5_heads, prefix, kept, is_t5)
        if "relative_attention_bias" in name:
            pruned[target] = weight[:, query]
            continue
        width = stack.d_kv if is_t5 else stack.head_dim
        if last in ("q_proj", "q"):
            pruned[target] = weight[rows(query, width)][:, c]
        elif last in ("o_proj", "o"):
            pruned[target] = weight[c][:, rows(query, width)]
        else:
            pruned[target] = weight[rows(kv, width)][:, source]
    sizes(config, shape, kept, channels, is_t5)
    return config, pruned


def scores_of_heads(scores, output, shape, at, t5_heads, prefix, kept, is_t5):
    n_groups, n_heads = shape["groups"][at], shape["heads"][at]
    if is_t5 and "EncDec" not in output:
        # One set for all layers, which share the bias by distance.
        if prefix not in t5_heads:
            total = 0
            for key, value in scores.items():
                if key.startswith("groups." + prefix) and "EncDec" not in key:
                    if int(key.split("block.")[1].split(".")[0]) in kept[prefix]:
                        total = total + value / value.sum()
            t5_heads[prefix] = top(total, n_groups)
        return t5_heads[prefix], t5_heads[prefix]
    heads, groups = scores[f"heads.{output}"], scores[f"groups.{output}"]
    kv, shared = top(groups, n_groups), len(heads) // len(groups)
    query = [g * shared + top(heads[g * shared : (g + 1) * shared], n_heads // n_groups) for g in kv.tolist()]
    return torch.cat(query), kv


def sizes(config, shape, kept, channels, is_t5):
    for at, (stack, prefix) in enumerate(stack_configs(config)):
        width = len(channels[prefix])
        if is_t5:
            config.num_layers, config.num_decoder_layers = shape["layers"]
            config.d_ff, config.num_heads = shape["ffn"][0], shape["heads"][0]
            if at == 1:
                config.layer_norm_epsilon *= config.d_model / width
                config.d_model = width
            continue
        stack.head_dim = stack.head_dim or stack.hidden_size // stack.num_attention_heads
        stack.rms_norm_eps *= stack.hidden_size / width
        stack.hidden_size, stack.intermediate_size = width, shape["ffn"][at]
        stack.num_attention_heads, stack.num_key_value_heads = shape["heads"][at], shape["groups"][at]
        if getattr(stack, "layer_types", None):
            stack.layer_types = [stack.layer_types[layer] for layer in kept[prefix]]
        stack.num_hidden_layers = shape["layers"][at]
        if hasattr(stack, "cross_attention_hidden_size"):
            stack.cross_attention_hidden_size = len(channels[stack_configs(config)[0][1]])


def pruned_logits(config, weights):
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    config._attn_implementation = "eager"
    model = kind.from_config(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all("lm_head" in name or "embed_tokens" in name for name in missing), missing
    model.tie_weights()
    ids, encoder_ids = tokens(7, 1, 9), tokens(8, 1, 6)
    with torch.no_grad():
        if config.is_encoder_decoder:
            logits = model(input_ids=encoder_ids, decoder_input_ids=ids, use_cache=False).logits
            return {"pruned_encoder_ids": encoder_ids, "pruned_ids": ids, "pruned_logits": logits}
        return {"pruned_ids": ids, "pruned_logits": model(input_ids=ids, use_cache=False).logits}


def uneven(root):
    """Layers of other widths and heads, one without attention."""
    sizes = dict(hidden_size=36, num_attention_heads=6, num_key_value_heads=2, head_dim=8, intermediate_size=40)
    sizes |= dict(num_hidden_layers=5, tie_word_embeddings=False)
    own = {
        "1": {"intermediate_size": 28},
        "2": {"num_attention_heads": 3, "num_key_value_heads": 1},
        "3": {"skip": ["attention"]},
        "4": {"num_key_value_heads": 3, "intermediate_size": 12},
    }
    plain = LlamaConfig(**COMMON, **sizes)
    model = LlamaForCausalLM(plain)
    for key, changes in own.items():
        config = LlamaConfig(**COMMON, **(sizes | {k: v for k, v in changes.items() if k != "skip"}))
        layer = LlamaDecoderLayer(config, int(key))
        if "attention" in changes.get("skip", []):
            layer.input_layernorm, layer.self_attn = nn.Identity(), Nothing()
        model.model.layers[int(key)] = layer
    randomize(model, 121)
    ids = tokens(122, 2, 11)
    targets = targets_of(ids, 123)
    logits = model(input_ids=ids, use_cache=False).logits
    golden = {"ids": ids, "targets": targets, "logits": logits, **backward(model, logits, targets)}
    config = plain.to_dict() | {"per_layer_config": own}
    write(root / "uneven", config, dict(model.named_parameters()), golden)


class Nothing(nn.Module):
    def forward(self, hidden_states, **_):
        return torch.zeros_like(hidden_states), None


def main(root):
    (root / "prune").mkdir(exist_ok=True)
    uneven(root)
    for seed, (name, shape) in enumerate(SHAPES.items()):
        model = load(root / name)
        ids = tokens(200 + seed, WINDOWS, WINDOW)
        scores = importances(model, ids)
        golden = scores | {"ids": ids} | pruned_logits(*prune(model, scores, shape))
        golden = {
            key: (value.to(torch.int32) if value.dtype == torch.int64 else value.float()).contiguous()
            for key, value in golden.items()
        }
        save_file(golden, root / "prune" / f"{name}.safetensors")
    (root / "prune" / "shapes.json").write_text(json.dumps(SHAPES, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
