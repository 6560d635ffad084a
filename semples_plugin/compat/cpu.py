"""CUDA calls mapped to the CPU, for a trial on a machine without a GPU: slow, and for no figure that is reported."""

from __future__ import annotations

import contextlib
import functools
from types import ModuleType
from typing import Any

from semples_plugin.compat.corrections import Corrections

CORRECTIONS = Corrections()


@CORRECTIONS.after("torch")
def map_cuda_to_the_cpu(torch: Any) -> None:
    """`.cuda()` and `.to("cuda")` stay where they are; the rest of `torch.cuda` does nothing."""
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.nn.Module.cuda = lambda self, *_, **__: self
    tensor_to, module_to = torch.Tensor.to, torch.nn.Module.to

    def on_cpu(to: Any) -> Any:
        def moved(self: Any, *arguments: Any, **options: Any) -> Any:
            arguments = tuple("cpu" if _is_cuda(torch, value) else value for value in arguments)
            if _is_cuda(torch, options.get("device")):
                options["device"] = "cpu"
            return to(self, *arguments, **options)

        return moved

    torch.Tensor.to, torch.nn.Module.to = on_cpu(tensor_to), on_cpu(module_to)
    torch.asarray = _made_on_cpu(torch, torch.asarray)  # FMA-WSSS, src/libs/seeding/seed_argmax.py:49
    nothing = {"synchronize", "empty_cache", "reset_peak_memory_stats", "set_device", "manual_seed", "manual_seed_all"}
    for name in nothing:
        setattr(torch.cuda, name, lambda *_, **__: None)
    torch.cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda *_, **__: None
    torch.cuda.get_rng_state_all = list
    torch.cuda.set_rng_state_all = lambda _: None
    torch.cuda.max_memory_allocated = torch.cuda.memory_allocated = lambda *_, **__: 0
    torch.cuda.device_count = lambda: 1  # scripts start one process per device
    torch.cuda.device = lambda _: contextlib.nullcontext()


def _made_on_cpu(torch: ModuleType, make: Any) -> Any:
    @functools.wraps(make)
    def made(*arguments: Any, **options: Any) -> Any:
        if _is_cuda(torch, options.get("device")):
            options["device"] = "cpu"
        return make(*arguments, **options)

    return made


def _is_cuda(torch: ModuleType, value: Any) -> bool:
    return isinstance(value, (str, torch.device)) and str(value).startswith("cuda")


@CORRECTIONS.after("alchemy_cat.torch_tools")  # FMA-WSSS, src/tasks/train_coop/run.py:69
def start_without_cuda(torch_tools: Any) -> None:
    """FMA-WSSS's environment asks for a GPU by itself."""
    init_env = torch_tools.init_env
    torch_tools.init_env = lambda **options: init_env(**{**options, "is_cuda": False})
