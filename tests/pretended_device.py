"""A device that is none: its tensors say "meta" and lie on the CPU, and what would make the host wait is counted."""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")

# Values that become Python's, and sizes that depend on values.
WAITING = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "repeat_interleave",
    "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class OnDevice(torch.Tensor):
    """A tensor on the pretended device; `values` holds its values."""

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> OnDevice:
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, values.size(), device=DEVICE, **layout)

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.tolist:  # torch refuses it to subclasses
            return args[0].cpu().tolist()
        if func is torch.Tensor.new_tensor:  # torch makes an empty tensor on "meta"
            return torch.tensor(args[1], dtype=args[0].dtype).to(DEVICE)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError("tensors of a PretendedDevice can be used within it alone")


class PretendedDevice(TorchDispatchMode):
    """`with PretendedDevice() as device: model.to(DEVICE); ...; device.waits` names what made the host wait.

    Beside `WAITING` that is a copy from the device, one to it that isn't `non_blocking` (CUDA stages such small ones
    at once), and an index of booleans.
    Operations on tensors of both sides fail, as on any device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._patch = mock.patch("torch.autocast", _autocast)

    def __enter__(self) -> PretendedDevice:
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._patch.stop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        is_from_device = any(isinstance(tensor, OnDevice) for tensor in tensors)
        is_on_device = is_from_device
        if kwargs.get("device") is not None:
            is_on_device = torch.device(kwargs["device"]).type == DEVICE.type
            kwargs["device"] = torch.device("cpu")
        if is_from_device or is_on_device:
            self._note(name, args, kwargs, tensors, is_from_device, is_on_device)
        result = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        if not is_on_device:
            return result
        result = tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, torch.Tensor) else leaf, result)
        return return_and_correct_aliasing(func, args, kwargs, result) if is_from_device else result

    def _note(self, name, args, kwargs, tensors, is_from_device, is_on_device) -> None:
        on_host = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
        if name in WAITING:
            self.waits.append(name)
        elif name == "_to_copy":
            if is_from_device != is_on_device and not (is_on_device and kwargs.get("non_blocking")):
                self.waits.append("copy to the device" if is_on_device else "copy from the device")
        elif name == "copy_":
            to_device, non_blocking = isinstance(args[0], OnDevice), kwargs.get("non_blocking", args[2:] == (True,))
            if on_host and not (to_device and non_blocking):
                self.waits.append("copy to the device" if to_device else "copy from the device")
        elif name in INDEXING:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.waits.append(f"{name} by booleans")
            elif any(not isinstance(index, OnDevice) for index in indices):
                self.waits.append(f"{name} by an index on the CPU")
        elif any(tensor.ndim for tensor in on_host) and is_from_device:
            raise RuntimeError(f"{name}: expected all tensors to be on one device")


def _values(leaf):
    return leaf.values if isinstance(leaf, OnDevice) else leaf


def _autocast(device_type: str, *args, _autocast=torch.autocast, **kwargs):
    """torch knows no autocast of this device."""
    return nullcontext() if device_type == DEVICE.type else _autocast(device_type, *args, **kwargs)
