"""Writes golden/lora: an adapter as peft begins one on golden/llama, its losses step by step, and what it has become.

Run at the repository's root with peft 0.21.2, torch 2.15.0, transformers 5.23.0: python tools/golden/lora.py. One fixed batch, AdamW
as torch has it (lr 1e-2, betas 0.9 and 0.95, decay 0.1), no clipping; the loss is the mean over all next tokens.
"""

import json
import pathlib
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

BASE = pathlib.Path("golden/llama")
FOLDER = pathlib.Path("golden/lora")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS = 8


def save(model, name):
    model.save_pretrained(FOLDER / name)
    (FOLDER / name / "README.md").unlink(missing_ok=True)
    config = FOLDER / name / "adapter_config.json"
    keys = json.loads(config.read_text())
    keys["target_modules"] = sorted(keys["target_modules"])
    config.write_text(json.dumps(keys, indent=2) + "\n")


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    torch.manual_seed(5)
    base = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager")
    options = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=10, target_modules=PROJECTIONS)
    model = get_peft_model(base, options)
    model.train()
    save(model, "initial")
    ids = torch.randint(3, base.config.vocab_size, (3, 18))
    trained = [values for values in model.parameters() if values.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    save(model, "trained")
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    expected = {"ids": ids.to(torch.int32), "losses": torch.tensor(losses, dtype=torch.float64), "logits": logits.contiguous()}
    save_file(expected, FOLDER / "expected.safetensors")


main()
