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
    init = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda backend=None, *a, **o: init("gloo", *a, **o)  # not nccl


@CORRECTIONS.after("torch")
def train_on_gloo(torch: Any) -> None:
    """Training by several processes without NCCL; batch norms are not synchronised, which torch does on GPUs alone."""
    distributed, parallel = torch.distributed, torch.nn.parallel.DistributedDataParallel
    start, wrap = distributed.init_process_group, parallel.__init__

    def start_on_gloo(backend: str | None = None, *arguments: Any, **options: Any) -> Any:
        return start("gloo" if backend == "nccl" else backend, *arguments, **options)

    def wrap_on_cpu(self: Any, module: Any, *_: Any, find_unused_parameters: bool = False, **__: Any) -> None:
        wrap(self, module, find_unused_parameters=find_unused_parameters)

    distributed.init_process_group, parallel.__init__ = start_on_gloo, wrap_on_cpu
    torch.nn.SyncBatchNorm.convert_sync_batchnorm = staticmethod(lambda module, process_group=None: module)


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


@CORRECTIONS.after("segm.utils.torch")  # WeakTr, OnlineRetraining/segm/utils/torch.py:36
def name_the_cpu(utils: Any) -> None:
    """WeakTr's second stage keeps the number of its GPU, which `.to` takes for one."""
    set_mode = utils.set_gpu_dist_mode

    def set_cpu_mode(mode: bool) -> None:
        set_mode(mode)
        utils.device = "cpu"

    utils.set_gpu_dist_mode = set_cpu_mode
