"""transformers_decode.py FILE.gguf PROMPT_TOKENS NEW_TOKENS THREADS

How fast transformers reads a prompt and decodes, in f32: it widens the file's weights when it loads them.
"""

import json
import os
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def main():
    path, prompt_tokens, new_tokens, threads = sys.argv[1], *map(int, sys.argv[2:5])
    torch.set_num_threads(threads)
    folder, name = os.path.split(os.path.abspath(path))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()

    def read(ids, past=None):
        result = model(torch.tensor([ids]), past_key_values=past, use_cache=True, logits_to_keep=1)
        return int(result.logits[0, -1].argmax()), result.past_key_values

    def decode(token, past):
        start = time.perf_counter()
        for _ in range(new_tokens):
            token, past = read([token], past)
        return new_tokens / (time.perf_counter() - start)

    with torch.inference_mode():
        read([1, 2, 3])
        start = time.perf_counter()
        token, past = read([(7919 * at + 1) % 40_000 for at in range(prompt_tokens)])
        prefill = prompt_tokens / (time.perf_counter() - start)
        after = decode(token, past)
        from_nothing = decode(*read([1]))
    print(json.dumps({"prefill": prefill, "decode after a prompt": after, "decode from nothing": from_nothing}))


main()
