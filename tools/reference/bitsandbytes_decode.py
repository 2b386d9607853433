"""A peer of `cargo xtask bench decode`: a folder of bitsandbytes' types in transformers on CPU, decoding greedily past end tokens.

Prints one JSON object: tokens a second of reading a prompt, and of decoding after it and from nothing.
"""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("model")
for name in ["--prompt", "--new", "--threads"]:
    parser.add_argument(name, type=int, required=True)
options = parser.parse_args()

torch.set_num_threads(options.threads)
model = AutoModelForCausalLM.from_pretrained(options.model, device_map="cpu")
model.eval()


@torch.inference_mode()
def decode(prompt_tokens, new_tokens):
    """Seconds to the first new token, and for the others."""
    ids = torch.tensor([[(7919 * i + 1) % model.config.vocab_size for i in range(prompt_tokens)]])
    start = time.perf_counter()
    step = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    token = step.logits[:, -1].argmax(-1, keepdim=True)
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        step = model(input_ids=token, past_key_values=step.past_key_values, use_cache=True)
        token = step.logits[:, -1].argmax(-1, keepdim=True)
    return first - start, time.perf_counter() - first


decode(options.prompt, 2)
reading, after = decode(options.prompt, options.new)
_, from_nothing = decode(1, options.new)
rest = options.new - 1
print(json.dumps({"prefill": options.prompt / reading, "after": rest / after, "from_nothing": rest / from_nothing}))
