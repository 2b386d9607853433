"""Merges models of different vocabularies with mergekit 0.1.5, and compares what luthier made of the same recipes, token by token.

merge_vocabularies.py make FOLDER: writes models FOLDER/<family>-{base,other,more}, whose byte-level BPE tokenizers are trained
on different words, FOLDER/recipes/*.yaml and what mergekit makes of them, FOLDER/theirs/*. merge_vocabularies.py compare
FOLDER: reads FOLDER/ours/* too and prints a JSON list, one object a recipe. The pinned environment is the one of
`cargo xtask python-env mergekit`.
"""

import json
import os
import pathlib
import random
import sys

import torch
import yaml
from safetensors.torch import load_file

# Rows of each family's models: base, other, more. More than tokens are padding.
FAMILIES = {"untied": (288, 320, 290), "tied": (300, 312, 300)}
BY_TOKEN = ["model.embed_tokens.weight", "lm_head.weight"]


def tokenizer(seed, n_words, added):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefgh\u00e9\u00fc", k=draw.randint(2, 6))) for _ in range(40)]
    text = [" ".join(draw.choices(words, k=12)) for _ in range(200)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=n_words, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(text, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.add_tokens(added)
    return fast


def make_models(family):
    import transformers as t

    tokenizers = {
        "base": tokenizer(1, 280, ["<|user|>"]), "other": tokenizer(2, 300, ["<|tool|>", "<|user|>"]),
        "more": tokenizer(1, 280, ["<|user|>", "<think>"]),
    }  # fmt: skip
    torch.manual_seed(len(family))
    for (place, words), rows in zip(tokenizers.items(), FAMILIES[family]):
        shape = dict(
            hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
            head_dim=8, vocab_size=rows, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        model = t.AutoModelForCausalLM.from_config(t.LlamaConfig(tie_word_embeddings=family == "tied", **shape)).float()
        with torch.no_grad():
            for values in model.parameters():
                values.copy_(0.1 * torch.randn_like(values))
        model.save_pretrained(f"{family}-{place}")
        words.save_pretrained(f"{family}-{place}")


def recipes(f):
    m = lambda place, **own: {"model": f"{f}-{place}", **({"parameters": own} if own else {})}
    base = {"base_model": f"{f}-base"}
    two = [m("other", weight=0.7, density=0.6), m("more", weight=0.4, density=0.5)]
    plain = [m("base", weight=0.3), m("other", weight=0.7), m("more", weight=0.4)]
    tokens = {
        "<|user|>": {"source": f"{f}-other", "force": True},
        "<think>": {"source": {"kind": "model_token", "model": f"{f}-other", "token": "<|tool|>"}},
        "<|new|>": {"source": {"kind": "model_token", "model": f"{f}-more", "token_id": 5}},
        "<|tool|>": {"source": {"kind": "zero"}, "force": True},
        "<|none|>": {"source": {"kind": "zero"}},
    }
    return {
        "union": {"merge_method": "linear", "models": plain, "tokenizer_source": "union"},
        "union_base": {"merge_method": "linear", **base, "models": plain, "tokenizer_source": "union"},
        "union_ties": {"merge_method": "ties", **base, "models": two, "tokenizer_source": "union"},
        "base": {"merge_method": "task_arithmetic", **base, "models": two, "tokenizer_source": "base"},
        "model": {"merge_method": "linear", **base, "models": plain, "tokenizer_source": f"{f}-other"},
        "slerp": {
            "merge_method": "slerp", **base, "models": [m("base"), m("other")], "parameters": {"t": 0.3}, "tokenizer_source": "union",
        },
        # Not base: mergekit then takes rows of the base that belong to no token for those of new tokens.
        "tokens": {"merge_method": "linear", "models": plain, **base, "tokenizer": {"source": f"{f}-more", "tokens": tokens}},
        "tokens_union": {
            "merge_method": "linear", **base, "models": plain,
            "tokenizer": {"source": "union", "tokens": tokens, "pad_to_multiple_of": 64},
        },
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
            options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
            run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), f"theirs/{family}-{name}", options)


def tensors(folder):
    return {name: values for file in pathlib.Path(folder).glob("*.safetensors") for name, values in load_file(file).items()}


def compare():
    from transformers import AutoConfig, AutoTokenizer

    found = []
    for recipe in sorted(pathlib.Path("recipes").glob("*.yaml")):
        name, places = recipe.stem, [f"{who}/{recipe.stem}" for who in ("ours", "theirs")]
        ours, theirs = map(tensors, places)
        words = [AutoTokenizer.from_pretrained(place).get_vocab() for place in places]
        one = {"name": f"vocabulary {name}", "same_names": ours.keys() == theirs.keys() and words[0].keys() == words[1].keys()}
        text = "abc h\u00e9 <|user|> hgf edcba\n\u00fcber alles, 10% <|tool|>"
        fast = AutoTokenizer.from_pretrained(places[0])
        rows = ours[BY_TOKEN[0]].shape[0]
        one["same_names"] &= fast.decode(fast.encode(text)) == text and rows == AutoConfig.from_pretrained(places[0]).vocab_size
        worst = 0.0
        for tensor in ours.keys() & theirs.keys():
            a, b = ours[tensor], theirs[tensor]
            if tensor in BY_TOKEN:
                pick = lambda values, ids: values[[ids[word] for word in sorted(words[0].keys() & words[1].keys())]]
                if name.endswith("tokens_union"):
                    one["same_names"] &= a.shape == b.shape
                    padding = a[len(words[0]) :] - b[len(words[1]) :]
                    worst = max([worst, *padding.abs().flatten().tolist()])
                a, b = pick(a, words[0]), pick(b, words[1])
            worst = max(worst, (a - b).abs().max().item())
        found.append(one | {"max_abs": worst, "random": False})
    print(json.dumps(found))


verb, folder = sys.argv[1:]
os.chdir(folder)
{"make": make, "compare": compare}[verb]()
