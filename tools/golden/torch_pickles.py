"""Makes golden/torch/: tiny files of torch.save in both containers, and the same tensors as safetensors.

Views, transposed and shared storages, every type, tensors without values and of no axes. Run
`python tools/golden/torch_pickles.py golden` with the versions of requirements.txt.
"""

import sys
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

TYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64,
]


def tensors():
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5) / 7 - 3
    shared = torch.linspace(-1, 1, 12).reshape(3, 4)
    state = OrderedDict()
    for dtype in TYPES:
        state[f"type.{str(dtype).removeprefix('torch.')}"] = torch.tensor([[1, 0, 3], [4, 5, 60]]).to(dtype)
    state["plain"] = base
    state["transposed"] = base.transpose(0, 2)
    state["column"] = base[1:, :, 2]
    state["stepped"] = base[:, ::2, 1::2]
    state["offset"] = base[2]
    state["expanded"] = torch.tensor([1.5, 2.5]).expand(3, 2)
    state["embed.weight"] = shared
    state["head.weight"] = shared
    state["parameter"] = torch.nn.Parameter(shared.t() * 2)
    state["scalar"] = torch.tensor(7.25)
    state["empty"] = torch.empty(0, 4)
    state["one"] = torch.full((1, 1, 3), -2.5)[:, :, 1:2]
    return state


def main(root):
    folder = root / "torch"
    folder.mkdir(parents=True, exist_ok=True)
    state = tensors()
    # What nn.Module.state_dict() attaches.
    state._metadata = OrderedDict({"": {"version": 1}})
    torch.save(state, folder / "zip.bin")
    torch.save(state, folder / "zip_protocol5.bin", pickle_protocol=5)
    # PyTorch cannot read types without a storage class of their own back from its old container.
    untyped = ("type.uint16", "type.uint32", "type.uint64", "type.float8")
    old = OrderedDict((name, tensor) for name, tensor in state.items() if not name.startswith(untyped))
    torch.save(old, folder / "legacy.bin", _use_new_zipfile_serialization=False)
    for name in ["zip.bin", "zip_protocol5.bin", "legacy.bin"]:
        # PyTorch's own safe reader does not know the operations of protocol 5.
        again = torch.load(folder / name, weights_only="protocol5" not in name)
        assert all(torch.equal(again[key].float(), state[key].float()) for key in again)
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
    save_file(plain, folder / "wanted.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
