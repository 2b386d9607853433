"""One peer of `cargo xtask bench train`: full training steps of a Hugging Face folder in PyTorch eager, f32.

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
options = parser.parse_args()

torch.set_num_threads(options.threads)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
model.train()
model.config.use_cache = False
ids = torch.randint(0, model.config.vocab_size, (options.batch, options.seq))
optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
)

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
