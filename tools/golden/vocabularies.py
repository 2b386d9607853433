"""Writes golden/vocabularies: tiny Llamas of different vocabularies, recipes, and what mergekit 0.1.5 merges them to.

Run at the repository's root with mergekit 0.1.5, torch 2.15.0, transformers 5.23.0: python tools/golden/vocabularies.py.
expected.safetensors holds the rows of each recipe's embeddings in the order of tokens.json, for ids are not the same in every
run of mergekit.
"""

import json
import pathlib
import random
import shutil
import tempfile

import torch
import transformers
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

FOLDER = pathlib.Path("golden/vocabularies")
ROWS = {"base": 30, "other": 29, "more": 27}
ROW_TENSORS = ["model.embed_tokens.weight", "lm_head.weight"]


def tokenizer(seed, added):
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdef", k=draw.randint(2, 5))) for _ in range(12)]
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=24, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    bpe.train_from_iterator([" ".join(draw.choices(words, k=9)) for _ in range(60)], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.add_tokens(added)
    return fast


def parents():
    words = {"base": tokenizer(1, ["<|user|>"]), "other": tokenizer(2, ["<|tool|>", "<|user|>"]), "more": tokenizer(1, ["<|user|>", "<think>"])}
    torch.manual_seed(4)
    for place, rows in ROWS.items():
        config = transformers.LlamaConfig(
            hidden_size=6, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=4,
            vocab_size=rows, max_position_embeddings=32, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config).float()
        with torch.no_grad():
            for values in model.parameters():
                values.copy_(0.3 * torch.randn_like(values))
        model.save_pretrained(FOLDER / place)
        words[place].save_pretrained(FOLDER / place)
        (FOLDER / place / "generation_config.json").unlink(missing_ok=True)


def recipes():
    m = lambda place, **own: {"model": place, **({"parameters": own} if own else {})}
    base, plain = {"base_model": "base"}, [m("base", weight=0.3), m("other", weight=0.7), m("more", weight=0.4)]
    tokens = {
        "<|user|>": {"source": "other", "force": True},
        "<think>": {"source": {"kind": "model_token", "model": "other", "token": "<|tool|>"}},
        "<|new|>": {"source": {"kind": "model_token", "model": "more", "token_id": 5}},
        "<|tool|>": {"source": {"kind": "zero"}, "force": True},
        "<|none|>": {"source": {"kind": "zero"}},
    }
    return {
        "union": {"merge_method": "linear", "models": plain, "tokenizer_source": "union"},
        "union_ties": {
            "merge_method": "ties", **base, "models": [m("other", weight=0.7, density=0.6), m("more", weight=0.4, density=0.5)],
            "tokenizer_source": "union",
        },
        "base": {"merge_method": "linear", **base, "models": plain, "tokenizer_source": "base"},
        "model": {"merge_method": "slerp", **base, "models": [m("base"), m("other")], "parameters": {"t": 0.3}, "tokenizer_source": "other"},
        "single_tokens": {
            "merge_method": "linear", **base, "models": plain,
            "tokenizer": {"source": "union", "tokens": tokens, "pad_to_multiple_of": 16},
        },
    }  # fmt: skip


def placed(node, key=None):
    """The recipe with the parents' names as places."""
    if isinstance(node, dict):
        return {k: placed(v, k) for k, v in node.items()}
    if isinstance(node, list):
        return [placed(item) for item in node]
    is_place = key in ("model", "base_model", "tokenizer_source", "source") and node in ROWS
    # base is a source of its own among tokenizers.
    return str(FOLDER / node) if is_place and not (key in ("tokenizer_source", "source") and node == "base") else node


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    parents()
    expected, tokens = {}, {}
    for name, recipe in recipes().items():
        (FOLDER / f"{name}.json").write_text(json.dumps(recipe) + "\n")
        with tempfile.TemporaryDirectory() as out:
            config = MergeConfiguration.model_validate(placed(recipe))
            run_merge(config, out, MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True))
            ids = transformers.AutoTokenizer.from_pretrained(out).get_vocab()
            tokens[name] = sorted(ids)
            for tensor, values in load_file(next(pathlib.Path(out).glob("*.safetensors"))).items():
                if tensor in ROW_TENSORS:
                    padding = values[len(ids) :]
                    values = torch.cat([values[[ids[token] for token in tokens[name]]], padding])
                expected[f"{name}/{tensor}"] = values.clone()
    (FOLDER / "tokens.json").write_text(json.dumps(tokens) + "\n")
    save_file(expected, FOLDER / "expected.safetensors")


main()
