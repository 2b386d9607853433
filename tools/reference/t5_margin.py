"""How far apart the two best logits of a T5 are after some decoder tokens, in f32.

Usage: t5_margin.py FOLDER --source N --before ID,ID,...

The source is that of `luthier bench`; prints one JSON object.
"""

import argparse
import json

import torch
from transformers import T5ForConditionalGeneration

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--source", type=int, required=True)
parser.add_argument("--before", required=True)
options = parser.parse_args()

model = T5ForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32)
source = [(7919 * i + 1) % model.config.vocab_size for i in range(options.source)]
before = [model.config.decoder_start_token_id] + [int(id) for id in options.before.split(",") if id]
with torch.no_grad():
    logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([before])).logits
best = logits[0, -1].topk(2).values
print(json.dumps({"margin": (best[0] - best[1]).item()}))
