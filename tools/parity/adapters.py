"""Makes models and adapters with peft 0.21.2, and compares what luthier made of the same.

adapters.py make FOLDER: writes models FOLDER/<family>-{base,tuned}, adapters FOLDER/adapters/<family>-<kind>, and what peft
merges them to, FOLDER/theirs/<family>-<kind>. adapters.py compare FOLDER: reads FOLDER/fused/<family>-<kind> (fuse-adapter) and
FOLDER/extracted/<family>-{whole,cut} (extract-adapter) and prints a JSON list, one object a comparison. The pinned environment
is the one of `cargo xtask python-env transformers`.
"""

import json
import pathlib
import sys

import torch
import transformers as t
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

SHAPE = dict(hidden_size=48, intermediate_size=72, num_hidden_layers=3, num_attention_heads=4, vocab_size=97, pad_token_id=0)
DECODER = dict(num_key_value_heads=2, head_dim=12, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, **SHAPE)
FAMILIES = {
    "llama": (t.LlamaForCausalLM, lambda: t.LlamaConfig(tie_word_embeddings=False, **DECODER)),
    "qwen2": (t.Qwen2ForCausalLM, lambda: t.Qwen2Config(tie_word_embeddings=True, **DECODER)),
    "bert": (t.BertModel, lambda: t.BertConfig(max_position_embeddings=64, **SHAPE)),
}
ATTENTION = {"llama": ["q_proj", "v_proj"], "qwen2": ["q_proj", "o_proj"], "bert": ["query", "value"]}
KINDS = {
    "plain": lambda f: dict(r=4, lora_alpha=6, target_modules=ATTENTION[f]),
    "rslora": lambda f: dict(r=3, lora_alpha=5, use_rslora=True, target_modules=ATTENTION[f]),
    "patterns": lambda f: dict(r=4, lora_alpha=8, target_modules=ATTENTION[f], rank_pattern={ATTENTION[f][0]: 2}, alpha_pattern={r".*\.1\..*": 3}),
    "dora": lambda f: dict(r=2, lora_alpha=4, use_dora=True, target_modules=ATTENTION[f]),
    "saved": lambda f: dict(r=2, lora_alpha=4, bias="all", target_modules=ATTENTION[f], modules_to_save=["LayerNorm" if f == "bert" else "input_layernorm"]),
}  # fmt: skip


def load(folder, family, place="base"):
    return FAMILIES[family][0].from_pretrained(folder / f"{family}-{place}")


def make(folder):
    for number, (family, (model_class, config)) in enumerate(FAMILIES.items()):
        torch.manual_seed(number)
        model = model_class(config()).float()
        with torch.no_grad():
            for values in model.parameters():
                values.copy_(0.1 * torch.randn_like(values))
        model.save_pretrained(folder / f"{family}-base")
        with torch.no_grad():
            for values in model.parameters():
                values.add_(0.02 * torch.randn_like(values))
        model.save_pretrained(folder / f"{family}-tuned")
        for kind, options in KINDS.items():
            model = get_peft_model(load(folder, family), LoraConfig(**options(family)))
            with torch.no_grad():
                for name, values in model.named_parameters():
                    if values.requires_grad:
                        values.copy_(0.2 * torch.randn_like(values) + (values if "magnitude" in name else 0))
            model.save_pretrained(folder / "adapters" / f"{family}-{kind}", save_embedding_layers=False)
            merged = PeftModel.from_pretrained(load(folder, family), folder / "adapters" / f"{family}-{kind}").merge_and_unload()
            merged.save_pretrained(folder / "theirs" / f"{family}-{kind}")


def outputs(model):
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        found = model.eval()(ids)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def largest(a, b):
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


def compare(folder):
    found = []
    for family in FAMILIES:
        for kind in KINDS:
            name = f"{family}-{kind}"
            ours = load_file(folder / "fused" / name / "model.safetensors")
            theirs = load_file(folder / "theirs" / name / "model.safetensors")
            same = ours.keys() == theirs.keys()
            found.append({"name": f"fuse {name}", "same_names": same, "max_abs": largest(ours, theirs) if same else None, "bound": 1e-6})
        base, tuned = load(folder, family).state_dict(), load(folder, family, "tuned")
        wanted = tuned.state_dict()
        for size in ["whole", "cut"]:
            model = PeftModel.from_pretrained(load(folder, family), folder / "extracted" / f"{family}-{size}")
            before = outputs(model)
            merged = model.merge_and_unload()
            came = merged.state_dict()
            if size == "whole":
                found.append({"name": f"extract {family}, merged by peft", "same_names": came.keys() == wanted.keys(), "max_abs": largest(came, wanted), "bound": 1e-5})
                found.append({"name": f"extract {family}, outputs unmerged", "same_names": True, "max_abs": (before - outputs(tuned)).abs().max().item(), "bound": 1e-4})
                continue
            keys = load_file(folder / "extracted" / f"{family}-cut" / "adapter_model.safetensors")
            pairs = {k.removeprefix("base_model.model.").split(".lora_")[0] + ".weight" for k in keys if ".lora_" in k}
            missed = sum(((wanted[n] - came[n]) ** 2).sum().item() for n in pairs)
            change = sum(((wanted[n] - base[n]) ** 2).sum().item() for n in pairs)
            said = json.loads((folder / "extracted" / f"{family}-cut" / "lineage.json").read_text())["measurements"]["relative_error"]
            error = (missed / change) ** 0.5
            found.append({"name": f"extract {family} at rank 4: error {error:.6f}, said {said:.6f}", "same_names": True, "max_abs": abs(error - said), "bound": 1e-5})
    print(json.dumps(found))


if __name__ == "__main__":
    {"make": make, "compare": compare}[sys.argv[1]](pathlib.Path(sys.argv[2]))
