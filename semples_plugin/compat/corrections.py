"""Stand-ins for modules that are gone, and corrections of modules as they are imported; no file of anybody changes.

Each is a small function, registered with the module that it is about:

    CLIMS = Corrections()

    @CLIMS.stand_in("cmapy")                     # where there is none: makes the module's contents
    @CLIMS.after("PIL.Image")                    # after the real one was imported: changes the module
    @CLIMS.in_source("step.train_clims")         # before it is compiled: source to source
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from types import CodeType, ModuleType

Change = Callable[[ModuleType], None]
SourceChange = Callable[[str], str]
REGISTRIES = {"clims": "clims", "weaktr": "weaktr", "fma-wsss": "fma_wsss"}
"""Names of hosts to the modules here that hold their `CORRECTIONS`."""


class Corrections:
    """What a host needs, by the name of the module that it concerns."""

    def __init__(self) -> None:
        self.stand_ins: dict[str, Change] = {}
        self.changes: dict[str, list[Change]] = {}
        self.sources: dict[str, list[SourceChange]] = {}

    def stand_in(self, module: str) -> Callable[[Change], Change]:
        """Fills a new module, where the real one can't be found."""

        def register(fill: Change) -> Change:
            self.stand_ins[module] = fill
            return fill

        return register

    def after(self, module: str) -> Callable[[Change], Change]:
        """Changes a module once it is imported."""

        def register(change: Change) -> Change:
            self.changes.setdefault(module, []).append(change)
            return change

        return register

    def in_source(self, module: str) -> Callable[[SourceChange], SourceChange]:
        """Changes the source of a module before it is compiled."""

        def register(change: SourceChange) -> SourceChange:
            self.sources.setdefault(module, []).append(change)
            return change

        return register


def install(host: str, on_cpu: bool = False, seeded: bool = False) -> None:
    """Puts the corrections of a host in place, and those that map CUDA calls to the CPU.

    Args:
        host: "clims", "weaktr" or "fma-wsss".
        on_cpu: for a trial on a machine without a GPU.
        seeded: seed random numbers, with the number in `semples_plugin.compat.seeding.VARIABLE`.
    """
    modules = (REGISTRIES[host], "cpu" if on_cpu else "gpu", *(["seeding"] if seeded else []))
    registries = [import_module(f"semples_plugin.compat.{module}").CORRECTIONS for module in modules]
    sys.meta_path.insert(0, _Finder(registries))
    for registry in registries:  # what was imported before
        for name in registry.changes.keys() & sys.modules.keys():
            for change in registry.changes[name]:
                change(sys.modules[name])


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules as the others do, and has them corrected."""

    def __init__(self, registries: Sequence[Corrections]) -> None:
        self.registries = registries

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        changes = [change for registry in self.registries for change in registry.changes.get(name, ())]
        sources = [change for registry in self.registries for change in registry.sources.get(name, ())]
        fills = [registry.stand_ins[name] for registry in self.registries if name in registry.stand_ins]
        if not (changes or sources or fills):
            return None
        spec = self._find_elsewhere(name, path, target)
        if spec is not None and spec.loader is not None:
            if changes or sources:
                spec.loader = _Corrected(spec.loader, changes, sources)
            return spec
        # Of a package, so that its submodules can have stand-ins of their own.
        return importlib.machinery.ModuleSpec(name, _StandIn(fills[0]), is_package=True) if fills else None

    def _find_elsewhere(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> importlib.machinery.ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                return spec
        return None


class _StandIn(importlib.abc.Loader):
    def __init__(self, fill: Change) -> None:
        self.fill = fill

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        self.fill(module)


class _Corrected(importlib.abc.InspectLoader):
    """A loader that changes what another one loads."""

    def __init__(
        self, loader: importlib.abc.Loader, changes: Sequence[Change], sources: Sequence[SourceChange]
    ) -> None:
        self.loader, self.changes, self.sources = loader, changes, sources

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)  # `get_resource_reader`, `is_package` and the like

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if self.sources:
            exec(self.get_code(module.__name__), module.__dict__)
        else:
            self.loader.exec_module(module)
        for change in self.changes:
            change(module)

    def get_source(self, fullname: str) -> str:
        assert isinstance(self.loader, importlib.abc.InspectLoader)
        source = self.loader.get_source(fullname) or ""
        for change in self.sources:
            corrected = change(source)
            if corrected == source:
                warnings.warn(
                    f"{fullname} no longer holds the line that {change.__module__}.{change.__name__} corrects: is it "
                    "another version?",
                    stacklevel=2,
                )
            source = corrected
        return source

    def get_code(self, fullname: str) -> CodeType:
        assert isinstance(self.loader, importlib.machinery.SourceFileLoader)
        return compile(self.get_source(fullname), self.loader.path, "exec")
