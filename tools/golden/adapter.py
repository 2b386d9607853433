"""Writes golden/adapter: a tiny Llama, LoRA adapters of every kind on it, and what peft merges them to.

Run at the repository's root with peft 0.21.2, torch 2.15.0, transformers 5.23.0: python tools/golden/adapter.py. plain.gguf, one
of them in llama.cpp's form, is made by its convert_lora_to_gguf.py where LUTHIER_LLAMA_CPP_SOURCE names a folder of its source
(llama-cpp-python 0.3.36's archive, vendor/llama.cpp), and kept otherwise.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

FOLDER = pathlib.Path("golden/adapter")
ATTENTION = ["q_proj", "v_proj"]
ADAPTERS = {
    "plain": ("llama", dict(r=3, lora_alpha=7, target_modules=[*ATTENTION, "down_proj"])),
    "patterns": (
        "llama",
        dict(
            r=4, lora_alpha=6, use_rslora=True, target_modules=[*ATTENTION, "up_proj"], rank_pattern={"q_proj": 2, r"layers\.1\..*up_proj": 1},
            alpha_pattern={"model.layers.0.self_attn.v_proj": 3},
        ),
    ),
    "dora": ("llama", dict(r=2, lora_alpha=5, use_dora=True, target_modules=[*ATTENTION, "gate_proj", "embed_tokens"])),
    "embedding": ("llama", dict(r=2, lora_alpha=4, target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"])),
    "biases": ("llama", dict(r=2, lora_alpha=4, bias="all", lora_bias=True, target_modules=ATTENTION)),
    "conv": ("gpt2", dict(r=2, lora_alpha=4, fan_in_fan_out=True, target_modules=["c_attn", "c_proj", "c_fc"])),
    "conv_dora": ("gpt2", dict(r=2, lora_alpha=4, fan_in_fan_out=True, use_dora=True, target_modules=["c_attn", "c_fc"])),
    "conv_kept": ("gpt2", dict(r=2, lora_alpha=4, fan_in_fan_out=True, bias="all", target_modules=["c_attn"], modules_to_save=["ln_1"])),
}  # fmt: skip


def make(kind):
    if kind == "llama":
        config = LlamaConfig(
            hidden_size=12, intermediate_size=10, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, head_dim=4,
            vocab_size=13, max_position_embeddings=64, tie_word_embeddings=False, attention_bias=True,
        )  # fmt: skip
        return LlamaForCausalLM(config)
    return GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, n_inner=8, n_positions=16, vocab_size=11))


def llama_cpps_form(before):
    source, file = os.environ.get("LUTHIER_LLAMA_CPP_SOURCE"), FOLDER / "plain.gguf"
    if source is None:
        file.write_bytes(before)
        return
    script = pathlib.Path(source) / "convert_lora_to_gguf.py"
    subprocess.run([sys.executable, script, "--base", FOLDER / "llama", "--outfile", file, FOLDER / "plain"], check=True)


def main():
    plain = FOLDER / "plain.gguf"
    before = plain.read_bytes() if plain.exists() else b""
    shutil.rmtree(FOLDER, ignore_errors=True)
    torch.manual_seed(3)
    for kind in ["llama", "gpt2"]:
        model = make(kind).float()
        with torch.no_grad():
            for values in model.parameters():
                values.copy_(0.3 * torch.randn_like(values))
        model.save_pretrained(FOLDER / kind)
        (FOLDER / kind / "generation_config.json").unlink(missing_ok=True)
    expected = {}
    for name, (kind, options) in ADAPTERS.items():
        load = lambda: type(make(kind)).from_pretrained(FOLDER / kind)
        model = get_peft_model(load(), LoraConfig(task_type="CAUSAL_LM", **options))
        with torch.no_grad():
            for values in (v for v in model.parameters() if v.requires_grad):
                values.copy_(0.3 * torch.randn_like(values) + (values if "magnitude" in name else 0))
        model.save_pretrained(FOLDER / name)
        (FOLDER / name / "README.md").unlink(missing_ok=True)
        config = FOLDER / name / "adapter_config.json"
        keys = json.loads(config.read_text())
        keys["target_modules"] = sorted(keys["target_modules"])
        config.write_text(json.dumps(keys, indent=2) + "\n")
        merged = PeftModel.from_pretrained(load(), FOLDER / name).merge_and_unload()
        saved = {n: v for n, v in load().state_dict().items()}
        for tensor, values in merged.state_dict().items():
            if not torch.equal(values, saved[tensor]):
                expected[f"{name}/{tensor}"] = values.contiguous().clone()
    save_file(expected, FOLDER / "expected.safetensors")
    llama_cpps_form(before)


main()
