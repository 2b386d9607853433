"""What transformers computes, in f32, for `cargo xtask parity`: greedy tokens, logits and perplexity of one model.

Usage: reference.py MODEL_FOLDER GGUF_FILE_OR_DASH PROMPTS.json TEXT OUT.json
A GGUF file is loaded by transformers' own reader; "-" loads the folder's weights.
"""

import json
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, gguf, prompts_path, text_path, out_path = sys.argv[1:]
torch.set_num_threads(2)
where = (folder, {}) if gguf == "-" else (gguf.rsplit("/", 1)[0], {"gguf_file": gguf.rsplit("/", 1)[1]})
model = AutoModelForCausalLM.from_pretrained(where[0], dtype=torch.float32, **where[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
prompts = json.load(open(prompts_path))
result = {"prompts": [], "perplexity": None}

with torch.no_grad():
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        n_prompt, new, margins = ids.shape[1], [], []
        cache = None
        step = ids
        for _ in range(32):
            out = model(step, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            best = out.logits[0, -1].topk(2)
            margins.append(float(best.values[0] - best.values[1]))
            new.append(int(best.indices[0]))
            step = best.indices[:1].view(1, 1)
        result["prompts"].append({"prompt_token_ids": ids[0].tolist(), "token_ids": new, "margins": margins})
    first = torch.tensor([result["prompts"][0]["prompt_token_ids"]])
    save_file({"logits": model(first).logits[0].contiguous()}, out_path + ".safetensors")

    ids = tokenizer(open(text_path, encoding="utf-8").read(), return_tensors="pt").input_ids[0]
    window, total, count = 512, 0.0, 0
    for start in range(0, len(ids), window):
        piece = ids[start : start + window]
        if len(piece) < 2:
            break
        logits = model(piece[None]).logits[0, :-1].double()
        total += float(torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum"))
        count += len(piece) - 1
    result["nll_nats_per_token"] = total / count
    result["tokens_scored"] = count

json.dump(result, open(out_path, "w"))
