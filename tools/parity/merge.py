"""Merges random models with mergekit 0.1.5, and compares what luthier made of the same recipes.

merge.py make FOLDER: writes models FOLDER/<family>-{base,a,b,c}, FOLDER/recipes/*.yaml and what mergekit makes of them,
FOLDER/theirs/*. merge.py compare FOLDER: reads FOLDER/ours/* too and prints a JSON list, one object a recipe.
The pinned environment is the one of `cargo xtask python-env mergekit`.
"""

import json
import os
import pathlib
import sys

import torch
import yaml
from safetensors.torch import load_file

FAMILIES = ["llama", "qwen2", "gemma2"]
RANDOM = ["dare_linear", "dare_ties", "della", "della_linear"]


def config(family):
    import transformers as t

    shape = dict(
        hidden_size=96, intermediate_size=216, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2,
        head_dim=16, vocab_size=999, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return {
        "llama": lambda: t.LlamaConfig(tie_word_embeddings=False, **shape),
        "qwen2": lambda: t.Qwen2Config(tie_word_embeddings=True, **shape),
        "gemma2": lambda: t.Gemma2Config(tie_word_embeddings=True, **shape),
    }[family]()


def make_models(family):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(FAMILIES.index(family))
    base = AutoModelForCausalLM.from_config(config(family)).float()
    drawn = {name: torch.randn_like(values) for name, values in base.named_parameters()}
    for place in ["base", "a", "b", "c"]:
        model = AutoModelForCausalLM.from_config(config(family)).float()
        with torch.no_grad():
            for name, values in model.named_parameters():
                noise = 0 if place == "base" else 0.01 * torch.randn_like(values)
                values.copy_(0.05 * drawn[name] + noise)
        # In shards, all but one.
        model.save_pretrained(f"{family}-{place}", max_shard_size="10GB" if place == "b" else "300KB")


def recipes(f):
    # As many layers as before: mergekit leaves the list of layer_types of a config as it was, which transformers refuses.
    m = lambda place, **own: {"model": f"{f}-{place}", **({"parameters": own} if own else {})}
    s = lambda place, start, end, **own: {"layer_range": [start, end], **m(place, **own)}
    base = {"base_model": f"{f}-base"}
    by_name = [{"filter": "mlp", "value": [0, 0.5, 1]}, {"filter": "self_attn", "value": [1, 0.25]}, {"value": 0.4}]
    three = lambda **own: [m("a", weight=0.7, **own), m("b", weight=-0.4, **own), m("c", weight=[0.2, 1.1], **own)]
    plain = [m("a"), m("b"), m("c")]
    learnt = lambda method, shared=None, **own: {
        "merge_method": method, **base, "models": three(**own), **({"parameters": shared} if shared else {}),
    }  # fmt: skip
    return {
        "linear": {"merge_method": "linear", "models": three()},
        "linear_plain": {"merge_method": "linear", "models": three(), "parameters": {"normalize": False}},
        "slerp": {"merge_method": "slerp", **base, "models": [m("a")], "parameters": {"t": by_name}},
        "slerp_slices": {
            "merge_method": "slerp", "base_model": f"{f}-a", "parameters": {"t": [0.1, 0.9]},
            "slices": [{"sources": [s("a", 0, 2), s("b", 2, 4)]}, {"sources": [s("a", 1, 3), s("c", 0, 2)]}],
        },
        "passthrough": {
            "merge_method": "passthrough",
            "slices": [{"sources": [s("a", 0, 2)]}, {"sources": [s("b", 1, 3, scale=[{"filter": "o_proj", "value": 0.5}, {"value": 1}])]}],
        },
        "nuslerp": {"merge_method": "nuslerp", "models": [m("a", weight=0.3), m("b", weight=0.9)]},
        "nuslerp_base": {"merge_method": "nuslerp", **base, "models": [m("a", weight=0.3), m("b", weight=0.9)]},
        "nuslerp_rows": {
            "merge_method": "nuslerp", "models": [m("a", weight=0.3), m("b", weight=0.9)],
            "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        },
        "multislerp": {"merge_method": "multislerp", "models": [m("a", weight=0.3), m("b", weight=0.9), m("c", weight=0.2)]},
        "multislerp_base": {"merge_method": "multislerp", **base, "models": [m("a", weight=0.3), m("b", weight=0.9)]},
        "karcher": {"merge_method": "karcher", "models": plain},
        "task_arithmetic": learnt("task_arithmetic", {"lambda": 0.8}),
        "ties": learnt("ties", density=[0.3, 0.7]),
        "ties_rescaled": learnt("ties", {"normalize": False, "rescale": True}, density=0.4),
        "dare_linear": learnt("dare_linear", density=0.4),
        "dare_ties": learnt("dare_ties", density=0.6),
        "della": learnt("della", density=0.5, epsilon=0.2),
        "della_linear": learnt("della_linear", density=0.5, epsilon=0.1),
        "breadcrumbs": learnt("breadcrumbs", density=0.6, gamma=0.1),
        "breadcrumbs_ties": learnt("breadcrumbs_ties", density=0.6, gamma=0.1),
        "sce": {"merge_method": "sce", **base, "models": plain, "parameters": {"select_topk": 0.4}},
        "model_stock": {"merge_method": "model_stock", **base, "models": plain},
        "model_stock_filters": {"merge_method": "model_stock", **base, "models": plain, "parameters": {"filter_wise": True}},
        "nearswap": {"merge_method": "nearswap", **base, "models": [m("b")], "parameters": {"t": 0.01}},
    }  # fmt: skip


def make():
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    pathlib.Path("recipes").mkdir()
    for family in FAMILIES:
        make_models(family)
        for name, recipe in recipes(family).items():
            text = yaml.safe_dump(recipe, sort_keys=False)
            pathlib.Path(f"recipes/{family}-{name}.yaml").write_text(text)
            torch.manual_seed(1)
            options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
            run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), f"theirs/{family}-{name}", options)


def tensors(folder):
    return {name: values for file in pathlib.Path(folder).glob("*.safetensors") for name, values in load_file(file).items()}


def compare():
    found = []
    for recipe in sorted(pathlib.Path("recipes").glob("*.yaml")):
        name, (family, method) = recipe.stem, recipe.stem.split("-", 1)
        ours, theirs, base = tensors(f"ours/{name}"), tensors(f"theirs/{name}"), tensors(f"{family}-base")
        # A head that repeats the embedding may be written or not.
        extra = {"lm_head.weight"} if family != "llama" else set()
        one = {"name": name, "same_names": ours.keys() - extra == theirs.keys() - extra, "random": method in RANDOM}
        shared = sorted(ours.keys() & theirs.keys())
        flat = lambda which: torch.cat([which[tensor].double().flatten() for tensor in shared])
        if one["random"]:
            changes = [flat(which) - flat(base) for which in (ours, theirs)]
            kept = [(change == 0).double().mean().item() for change in changes]
            sizes = [change.square().mean().sqrt().item() for change in changes]
            one |= {"share_difference": kept[0] - kept[1], "size_ratio": sizes[0] / sizes[1]}
        else:
            one["max_abs"] = (flat(ours) - flat(theirs)).abs().max().item()
        found.append(one)
    print(json.dumps(found))


verb, folder = sys.argv[1:]
os.chdir(folder)
{"make": make, "compare": compare}[verb]()
