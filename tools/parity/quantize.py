"""Helper of `cargo xtask parity-surgery quantize`; each use prints one JSON object or makes files.

quantize.py compare OURS THEIRS [WIDE]: two GGUF files tensor by tensor; WIDE is OURS as f32, whose values must be those that
gguf's own reader gives for OURS, bit for bit.
quantize.py narrow FOLDER: a random Llama with rows that 32 does not divide.

The pinned environment is the one of `cargo xtask python-env` (gguf 0.19.0).
"""

import json
import pathlib
import sys


def compare(ours_path, theirs_path, wide_path=None):
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize

    def tensors(path):
        return {tensor.name: tensor for tensor in GGUFReader(path).tensors}

    ours, theirs = tensors(ours_path), tensors(theirs_path)
    shared = [name for name in ours if name in theirs]
    result = {
        "tensors": len(ours),
        "missing": sorted(ours.keys() ^ theirs.keys()),
        "other_types": [name for name in shared if ours[name].tensor_type != theirs[name].tensor_type],
        "other_bytes": [name for name in shared if ours[name].data.tobytes() != theirs[name].data.tobytes()],
        "other_values": [],
    }
    if wide_path:
        wide = tensors(wide_path)
        for name, tensor in ours.items():
            wanted = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if wanted.tobytes() != wide[name].data.tobytes():
                result["other_values"].append(name)
    print(json.dumps(result))


def narrow(folder):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=320, hidden_size=80, intermediate_size=304, num_hidden_layers=2, num_attention_heads=5,
        num_key_value_heads=5, head_dim=16, max_position_embeddings=64, tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(pathlib.Path(folder))


{"compare": compare, "narrow": narrow}[sys.argv[1]](*sys.argv[2:])
