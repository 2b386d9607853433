"""Helper of `cargo xtask parity-surgery quantize`: folders of nf4, fp4 and int8 beside bitsandbytes and transformers.

bits_and_bytes.py tensors SOURCE QUANTISED KIND DOUBLE: rounds every matrix of the folder SOURCE that QUANTISED holds rounded
with bitsandbytes and compares codes and scales; DOUBLE is 0 or 1.
bits_and_bytes.py logits QUANTISED TOKENS OUT: what transformers computes for comma-separated tokens, as safetensors.

The pinned environment is the one of `cargo xtask python-env bitsandbytes` (bitsandbytes 0.50.2, on a CPU).
"""

import json
import pathlib
import sys

import torch
from bitsandbytes import functional as F
from safetensors.torch import load_file, save_file


def load(folder):
    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def nested(absmax, offset):
    """Scales rounded by the rule of bitsandbytes' GPU kernels; its CPU kernel looks up a coarse table."""
    levels = F.create_dynamic_map()
    codes, scales = [], []
    for block in (absmax - offset).split(256):
        scale = block.abs().max()
        scaled = block * (1.0 / scale) if len(block) == 256 else block / scale
        codes.append(torch.bucketize(scaled.clamp(-1, 1), (levels[:-1] + levels[1:]) / 2).to(torch.uint8))
        scales.append(scale)
    return torch.cat(codes), torch.stack(scales)


def tensors(source, quantised, kind, double):
    source, came = load(source), load(quantised)
    result = {"matrices": 0, "other_codes": [], "other_scales": []}
    for name, weight in source.items():
        if name not in came or came[name].dtype not in (torch.uint8, torch.int8):
            continue
        result["matrices"] += 1
        if kind == "int8":
            codes, scales, _ = F.int8_vectorwise_quant(weight.to(torch.float16))
            wanted = [(codes, came[name]), (scales, came[name.removesuffix("weight") + "SCB"])]
        else:
            codes, state = F.quantize_4bit(weight, blocksize=64, quant_type=kind)
            wanted = [(codes, came[name]), (state.absmax, came[name + ".absmax"])]
            if double == "1":
                stored = came[f"{name}.quant_state.bitsandbytes__{kind}"].numpy().tobytes()
                offset = torch.tensor(json.loads(stored)["nested_offset"], dtype=torch.float32)
                small, scales = nested(state.absmax, offset)
                near = torch.isclose(offset, state.absmax.mean(), rtol=1e-5, atol=0)
                wanted[1] = (small, came[name + ".absmax"])
                wanted.append((scales, came[name + ".nested_absmax"] if near else torch.zeros(1)))
        if not torch.equal(wanted[0][0].flatten(), wanted[0][1].flatten()):
            result["other_codes"].append(name)
        if not all(torch.equal(a.flatten(), b.flatten()) for a, b in wanted[1:]):
            result["other_scales"].append(name)
    print(json.dumps(result))


def logits(quantised, tokens, out):
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(quantised, dtype=torch.float32).eval()
    ids = torch.tensor([[int(token) for token in tokens.split(",")]])
    with torch.no_grad():
        save_file({"logits": model(ids).logits[0].float().contiguous()}, out)


{"tensors": tensors, "logits": logits}[sys.argv[1]](*sys.argv[2:])
