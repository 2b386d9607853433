"""Compares two GGUF files tensor by tensor: quantize.py OURS THEIRS prints one JSON object.

The pinned environment is the one of `cargo xtask python-env` (gguf 0.19.0).
"""

import json
import sys

from gguf import GGUFReader

ours, theirs = ({tensor.name: tensor for tensor in GGUFReader(path).tensors} for path in sys.argv[1:])
shared = [name for name in ours if name in theirs]
print(
    json.dumps(
        {
            "tensors": len(ours),
            "missing": sorted(ours.keys() ^ theirs.keys()),
            "other_types": [name for name in shared if ours[name].tensor_type != theirs[name].tensor_type],
            "other_bytes": [name for name in shared if ours[name].data.tobytes() != theirs[name].data.tobytes()],
        }
    )
)
