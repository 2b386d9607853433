"""Writes golden/merge: tiny Llama parents, recipes, and what mergekit 0.1.5 merges them to.

Run at the repository's root with mergekit 0.1.5, torch 2.15.0, transformers 5.23.0:
python tools/golden/merge.py. Where a method draws at random, the draws are luthier's own (uniform below), so that both drop
the same values.
"""

import json
import pathlib
import shutil
import tempfile

import numpy as np
import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods import generalized_task_arithmetic as gta
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file

FOLDER = pathlib.Path("golden/merge")
SEED = 7
MASK = (1 << 64) - 1
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 12, "intermediate_size": 10,
    "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 13,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "torch_dtype": "float32",
}  # fmt: skip


def mix(state):
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def uniform(name, which, at):
    hashed = 0xCBF29CE484222325
    for byte in name.encode():
        hashed = ((hashed ^ byte) * 0x100000001B3) & MASK
    stream = mix((mix(SEED) + hashed + which) & MASK)
    return (mix((stream + (at + 1) * 0x9E3779B97F4A7C15) & MASK) >> 11) / 2**53


class Draws:
    """What is being sparsified at the moment."""

    name, inputs, turn = "", [], 0


def bernoulli(probabilities):
    which = Draws.inputs[Draws.turn - 1]
    flat = probabilities.reshape(-1).double()
    drawn = [uniform(Draws.name, which, at) < float(p) for at, p in enumerate(flat)]
    return torch.tensor(drawn).reshape(probabilities.shape).to(probabilities.dtype)


def install():
    merge_group, sparsify = gta.GeneralizedTaskArithmeticMerge.merge_group, gta.sparsify

    def named(self, group, /, **parameters):
        Draws.name, Draws.turn = group.metadata.name, 0
        Draws.inputs = [idx for idx, entry in enumerate(group.entries) if not entry.is_base]
        return merge_group(self, group, **parameters)

    def counted(*arguments, **keys):
        Draws.turn += 1
        return sparsify(*arguments, **keys)

    gta.GeneralizedTaskArithmeticMerge.merge_group = named
    gta.sparsify = counted
    torch.bernoulli = bernoulli


def parents():
    rng = np.random.default_rng(5)
    width, ffn, heads, kv = 12, 10, 12, 4
    shapes = {"model.embed_tokens.weight": (13, width), "model.norm.weight": (width,), "lm_head.weight": (13, width)}
    for layer in range(3):
        own = {
            "input_layernorm": (width,), "post_attention_layernorm": (width,), "self_attn.q_proj": (heads, width),
            "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width), "self_attn.o_proj": (width, heads),
            "mlp.gate_proj": (ffn, width), "mlp.up_proj": (ffn, width), "mlp.down_proj": (width, ffn),
        }  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    base = {name: rng.normal(0, 0.3, shape) for name, shape in shapes.items()}
    for parent in ["base", "a", "b", "c"]:
        noise = 0.0 if parent == "base" else 0.2
        weights = {n: torch.tensor(v + rng.normal(0, 1, v.shape) * noise).float() for n, v in base.items()}
        folder = FOLDER / parent
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def models(*pairs):
    return [{"model": name, **({"parameters": parameters} if parameters else {})} for name, parameters in pairs]


def recipes():
    w = [{"weight": 0.7}, {"weight": -0.4}, {"weight": [0.2, 1.1]}]
    three = lambda **more: models(*[(name, own | more) for name, own in zip("abc", w)])
    learnt = lambda method, shared=None, **more: {
        "merge_method": method, "base_model": "base", "models": three(**more), **({"parameters": shared} if shared else {}),
    }  # fmt: skip
    filters = [{"filter": "mlp", "value": [0, 0.5, 1]}, {"filter": "self_attn", "value": [1, 0.25]}, {"value": 0.4}]
    source = lambda name, start, end, **own: {"model": name, "layer_range": [start, end], **({"parameters": own} if own else {})}
    return {
        "linear": {"merge_method": "linear", "models": three()},
        "linear_plain": {"merge_method": "linear", "models": three(), "parameters": {"normalize": False}},
        "slerp": {"merge_method": "slerp", "base_model": "base", "models": models(("a", None)), "parameters": {"t": filters}},
        "slerp_slices": {
            "merge_method": "slerp", "base_model": "a", "parameters": {"t": [0.1, 0.9]},
            "slices": [
                {"sources": [source("a", 0, 2), source("b", 1, 3)]},
                {"sources": [source("a", 1, 3), source("c", 0, 2)], "parameters": {"t": filters}},
            ],
        },
        "passthrough": {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [source("a", 0, 2)]}, {"sources": [source("b", 1, 3, scale=[{"filter": "down_proj", "value": 0.5}])]},
                {"sources": [source("a", 2, 3)]},
            ],
        },
        "nuslerp": {"merge_method": "nuslerp", "models": models(("a", {"weight": 0.3}), ("b", {"weight": 0.9}))},
        "nuslerp_base": {"merge_method": "nuslerp", "base_model": "base", "models": models(("a", {"weight": 0.3}), ("b", {"weight": 0.9}))},
        "nuslerp_rows": {
            "merge_method": "nuslerp", "models": models(("a", {"weight": 0.3}), ("b", {"weight": 0.9})),
            "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        },
        "nuslerp_lines": {
            "merge_method": "nuslerp", "models": models(("a", {"weight": 0.3}), ("b", {"weight": 0.9})),
            "parameters": {"nuslerp_flatten": False},
        },
        "multislerp": {"merge_method": "multislerp", "models": models(("a", {"weight": 0.3}), ("b", {"weight": 0.9}), ("c", {"weight": 0.2}))},
        "multislerp_base": {"merge_method": "multislerp", "base_model": "base", "models": models(("a", {"weight": 0.3}), ("b", {"weight": 0.9}))},
        "karcher": {"merge_method": "karcher", "models": models(("a", None), ("b", None), ("c", None)), "parameters": {"max_iter": 8}},
        "task_arithmetic": learnt("task_arithmetic", {"lambda": 0.8}),
        "ties": learnt("ties", density=[0.3, 0.7]),
        "ties_sum": learnt("ties", {"normalize": False, "rescale": True}, density=0.4),
        "dare_linear": learnt("dare_linear", density=0.4),
        "dare_ties": learnt("dare_ties", density=0.6),
        "della": learnt("della", density=0.5, epsilon=0.2),
        "della_linear": learnt("della_linear", {"rescale": False}, density=0.5),
        "breadcrumbs": learnt("breadcrumbs", density=0.6, gamma=0.1),
        "breadcrumbs_ties": learnt("breadcrumbs_ties", density=0.6, gamma=0.1),
        "sce": {"merge_method": "sce", "base_model": "base", "models": models(("a", None), ("b", None), ("c", None)), "parameters": {"select_topk": 0.4}},
        "sce_all": {"merge_method": "sce", "base_model": "base", "models": models(("a", None), ("b", None))},
        "model_stock": {"merge_method": "model_stock", "base_model": "base", "models": models(("a", None), ("b", None), ("c", None))},
        "model_stock_filters": {
            "merge_method": "model_stock", "base_model": "base", "models": models(("a", None), ("b", None)),
            "parameters": {"filter_wise": True},
        },
        "nearswap": {"merge_method": "nearswap", "base_model": "base", "models": models(("b", None)), "parameters": {"t": [0.01, 0.2]}},
    }  # fmt: skip


def placed(node):
    """The recipe with the parents' names as places."""
    if isinstance(node, dict):
        here = {k: str(FOLDER / v) if k in ("model", "base_model") else placed(v) for k, v in node.items()}
        return here
    return [placed(item) for item in node] if isinstance(node, list) else node


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    parents()
    install()
    expected = {}
    for name, recipe in recipes().items():
        (FOLDER / f"{name}.json").write_text(json.dumps(recipe) + "\n")
        with tempfile.TemporaryDirectory() as out:
            config = MergeConfiguration.model_validate(placed(recipe))
            run_merge(config, out, MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True))
            merged = load_file(next(pathlib.Path(out).glob("*.safetensors")))
            expected |= {f"{name}/{tensor}": values.clone() for tensor, values in merged.items()}
    save_file(expected, FOLDER / "expected.safetensors")


main()
