"""Writes golden/blocks: random blocks of each type and what the Python package gguf (0.19.0) widens them to.

Run at the repository's root: python tools/golden/blocks.py
Each <TYPE>.bin holds u32 n_blocks, the blocks, then the f32 values, all little-endian. The f16 scales are drawn over all
finite values, subnormal and zero included; everything else is uniform over all bit patterns.
"""

import pathlib

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

# Where the f16 scales stand inside a block.
SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.TQ1_0: [52], T.TQ2_0: [64],
}  # fmt: skip


def finite_halves(rng, shape):
    halves = rng.integers(0, 1 << 16, shape, dtype=np.uint16)
    halves[(halves & 0x7C00) == 0x7C00] &= 0x83FF
    return halves


def main():
    rng = np.random.default_rng(3)
    folder = pathlib.Path("golden/blocks")
    folder.mkdir(parents=True, exist_ok=True)
    for kind, offsets in SCALES.items():
        n_values, n_bytes = GGML_QUANT_SIZES[kind]
        n_blocks = 1024 // n_values
        blocks = rng.integers(0, 256, (n_blocks, n_bytes), dtype=np.uint8)
        for offset in offsets:
            blocks[:, offset : offset + 2] = finite_halves(rng, (n_blocks, 1)).view(np.uint8)
        values = dequantize(blocks, kind).astype("<f4")
        head = np.array([n_blocks], dtype="<u4").tobytes()
        (folder / f"{kind.name}.bin").write_bytes(head + blocks.tobytes() + values.tobytes())


main()
