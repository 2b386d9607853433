"""Writes golden/quantize: awkward rows, importance weights, and the blocks that llama.cpp's quantisers make of them.

Run at the repository's root: LUTHIER_LLAMA_CPP=<folder of built programs> python tools/golden/quantize.py
The folder is the one that `cargo xtask parity` builds (llama.cpp as in the source archive of llama-cpp-python 0.3.36,
x86-64); its libggml-base.so is called. Where the Python package gguf (0.19.0) has a quantiser too, it must agree, but
for row 4: the two give a scale or minimum of 0 different signs.
rows.bin: f32, 8 rows of 512; importance.bin: f32, 512. <TYPE>.bin: the blocks of all rows; <TYPE>-weighted.bin: with
importance weights. All little-endian.
"""

import ctypes
import os
import pathlib

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

COLS = 512
WEIGHTED = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K]
PLAIN = WEIGHTED + [T.Q8_0, T.TQ1_0, T.TQ2_0]
IN_GGUF = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.TQ1_0, T.TQ2_0]


def rows(rng):
    rows = rng.normal(0, 0.02, (8, COLS))
    rows[1] = rng.standard_t(2, COLS) * 0.01  # Heavy tails.
    rows[2] = np.abs(rows[2])  # No negative value.
    rows[3] = -np.abs(rows[3]) - 0.01  # No positive one.
    rows[4, :96] = 0.0  # Groups of zeros, of both signs, and a constant one.
    rows[4, 32:64:3] = -0.0
    rows[4, 96:160] = 0.125
    rows[4, 160:192] = -0.25
    rows[4, 192:448] = 0.0
    rows[5] = rng.integers(-8, 8, COLS) / 16  # Ties of rounding.
    rows[6] = rng.choice([-0.03, 0.0, 0.03], COLS) * (1 + 1e-3 * rng.normal(size=COLS))  # Nearly ternary.
    rows[7, :256] *= 1e-7  # Scales that are subnormal in f16.
    rows[7, 300] = 900.0  # One value far above all others.
    return rows.astype("<f4")


def main():
    rng = np.random.default_rng(4)
    folder = pathlib.Path("golden/quantize")
    folder.mkdir(parents=True, exist_ok=True)
    values = rows(rng)
    importance = (rng.exponential(1.0, COLS) ** 2).astype("<f4")
    importance[40:44] = 0.0
    importance[256:288] = 0.0
    (folder / "rows.bin").write_bytes(values.tobytes())
    (folder / "importance.bin").write_bytes(importance.tobytes())
    library = ctypes.CDLL(str(pathlib.Path(os.environ["LUTHIER_LLAMA_CPP"]) / "libggml-base.so"))
    chunk = library.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    long = ctypes.c_int64
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, long, long, long, ctypes.c_void_p]

    def blocks(kind, weights):
        n_values, n_bytes = GGML_QUANT_SIZES[kind]
        out = np.zeros(values.size // n_values * n_bytes, np.uint8)
        weights = None if weights is None else weights.ctypes.data
        assert chunk(kind, values.ctypes.data, out.ctypes.data, 0, len(values), COLS, weights) == out.size
        return out

    for kind in PLAIN:
        out = blocks(kind, None)
        if kind in IN_GGUF:
            theirs, same = quantize(values, kind), out.reshape(len(values), -1)
            assert (np.delete(theirs, 4, 0) == np.delete(same, 4, 0)).all(), kind
            assert (dequantize(theirs, kind) == dequantize(same, kind)).all(), kind
        (folder / f"{kind.name}.bin").write_bytes(out.tobytes())
    for kind in WEIGHTED:
        (folder / f"{kind.name}-weighted.bin").write_bytes(blocks(kind, importance).tobytes())


main()
