"""Writes golden/bitsandbytes: awkward rows, and what bitsandbytes makes of them.

Run at the repository's root: python tools/golden/bits_and_bytes.py (bitsandbytes 0.50.2, torch 2.15.0, on a CPU).
rows.bin: f32, 8 rows of 96; odd.bin: f32, 203 values. <VALUES>-{nf4,fp4}.bin: codes; -absmax.bin: scales, f32;
-{nf4,fp4}-back.bin: the values of the codes, f32. rows-int8.bin and rows-scb.bin: int8 by rows, through f16.
dynamic-map.bin: 256 f32; nested.bin: 600 f32, nested-codes.bin and nested-absmax.bin: the same rounded by that map.
"""

import pathlib

import numpy as np
import torch
from bitsandbytes import functional as F
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

folder = pathlib.Path("golden/bitsandbytes")


def put(name, values):
    (folder / f"{name}.bin").write_bytes(np.ascontiguousarray(values.numpy()).tobytes())


def rows(rng):
    rows = rng.normal(0, 0.02, (8, 96))
    rows[1] = rng.standard_t(2, 96) * 0.01  # Heavy tails.
    rows[2] = 0.0
    rows[3, ::2] = -0.0
    rows[4] = rng.integers(-12, 13, 96) / 12  # Levels of fp4 and values between them.
    rows[5] = rng.choice([-0.5, 0.5, 0.25], 96)
    rows[6] *= 1e-7  # Subnormal in f16.
    rows[7, 5] = 60000.0  # One value far above all others.
    return torch.tensor(rows.astype("<f4"))


def main():
    rng = np.random.default_rng(8)
    folder.mkdir(parents=True, exist_ok=True)
    matrix = rows(rng)
    odd = torch.tensor(rng.normal(0, 1, 203).astype("<f4"))
    for name, values in {"rows": matrix, "odd": odd}.items():
        put(name, values)
        for kind in ["nf4", "fp4"]:
            codes, state = F.quantize_4bit(values, blocksize=64, quant_type=kind)
            put(f"{name}-{kind}", codes)
            put(f"{name}-absmax", state.absmax)
            # Not the CPU kernel, which takes every row's first value for a block's.
            back = _dequantize_4bit_compute(
                codes.reshape(-1), state.absmax, state.code, 64, values.reshape(1, -1).shape, torch.float32
            )
            put(f"{name}-{kind}-back", back)
    codes, scales, _ = F.int8_vectorwise_quant(matrix.to(torch.float16))
    put("rows-int8", codes)
    put("rows-scb", scales)
    put("dynamic-map", F.create_dynamic_map())
    nested = torch.tensor((rng.normal(0, 0.01, 600)).astype("<f4"))
    nested[3] = 0.0
    nested[300:330] *= 1e-5
    put("nested", nested)
    # The rule of bitsandbytes' GPU kernels and of its default; its CPU kernel looks up a coarse table, and rounds 0 to
    # 2.1e-5.
    levels = F.create_dynamic_map()
    codes, scales = [], []
    for block in nested.split(256):
        scale = block.abs().max()
        scaled = block * (1.0 / scale) if len(block) == 256 else block / scale
        codes.append(torch.bucketize(scaled.clamp(-1, 1), (levels[:-1] + levels[1:]) / 2).to(torch.uint8))
        scales.append(scale)
    put("nested-codes", torch.cat(codes))
    put("nested-absmax", torch.stack(scales))


main()
