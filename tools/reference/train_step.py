"""Peers of `cargo xtask bench train`: training steps of a Hugging Face folder in PyTorch, f32: of all weights or, with
--lora-rank, of peft's adapter beside all seven projections; eager, or with --compile through torch.compile.

Prints one JSON object: losses, median step time after two warm-up steps, tokens/s, peak resident bytes.
"""

import argparse
import json
import resource
import statistics
import time

import torch
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--seq", type=int, required=True)
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--lora-rank", type=int)
parser.add_argument("--compile", action="store_true")
options = parser.parse_args()

torch.set_num_threads(options.threads)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
model.train()
model.config.use_cache = False
if options.lora_rank is not None:
    from peft import LoraConfig, get_peft_model

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=options.lora_rank, lora_alpha=2 * options.lora_rank, target_modules=names
    )
    model = get_peft_model(model, adapter)
ids = torch.randint(0, model.config.vocab_size, (options.batch, options.seq))
optimizer = torch.optim.AdamW(
    [values for values in model.parameters() if values.requires_grad], lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
)
if options.compile:
    model = torch.compile(model)

losses, times = [], []
for step in range(options.steps):
    start = time.perf_counter()
    loss = model(input_ids=ids, labels=ids).loss
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    times.append(time.perf_counter() - start)

step_s = statistics.median(times[2:])
print(
    json.dumps(
        {
            "losses": losses,
            "step_ms": step_s * 1e3,
            "train_tokens_per_s": options.batch * options.seq / step_s,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
    )
)
