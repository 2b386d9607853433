"""Makes golden/rope.json: the inverse frequencies and attention factors of transformers for each kind of rotary scaling."""

import json
import sys
from pathlib import Path

from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

CASES = [
    dict(rope_type="default", rope_theta=10000.0),
    dict(rope_type="linear", rope_theta=10000.0, factor=4.0),
    dict(
        rope_type="llama3",
        rope_theta=500000.0,
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, original_max_position_embeddings=32768),
    dict(rope_type="yarn", rope_theta=10000.0, factor=8.0, original_max_position_embeddings=64, truncate=False),
    dict(
        rope_type="yarn",
        rope_theta=50000.0,
        factor=40.0,
        original_max_position_embeddings=4096,
        beta_fast=24,
        beta_slow=2,
        mscale=0.707,
        mscale_all_dim=1.0,
    ),
    dict(
        rope_type="longrope",
        rope_theta=10000.0,
        attention_factor=1.0,
        original_max_position_embeddings=4096,
        short_factor=[1.0 + 0.25 * i for i in range(32)],
        long_factor=[1.0 + 0.25 * i for i in range(32)],
    ),
]


def main(root):
    made = []
    for parameters in CASES:
        config = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=dict(parameters))
        config.max_position_embeddings = 131072
        rope = LlamaRotaryEmbedding(config)
        speeds = [float(x) for x in rope.inv_freq]
        made.append(dict(rope_parameters=parameters, inv_freq=speeds, attention_factor=float(rope.attention_scaling)))
    lines = ",\n".join(json.dumps(case) for case in made)
    (root / "rope.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
