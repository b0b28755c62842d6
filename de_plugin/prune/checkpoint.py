"""A search on disk: written whole after each cycle, refused by any other search, resumed bit for bit.

A training within a cycle, or at the end, has a file of its own beside it until the cycle is written.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from de_plugin import version
from de_plugin.assess.fingerprint import fingerprint
from de_plugin.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    from de_plugin.assess.problem import Problem
    from de_plugin.prune.plan import Plan

_FILE = "search"
_PART = "-part-"
_FORMAT = 1
_PLAIN = (str, int, float, complex, bool, bytes, slice, range, np.generic, torch.dtype, torch.device, Path)
"""What tells all of itself."""
_DESCRIBED: ContextVar[tuple[Any, ...]] = ContextVar("de_plugin_described", default=())
"""What is being described, the outermost first."""
_BRIEF = 300
"""Characters of a text that a message shows."""
_CALLED = "called"
"""In the metadata of a dataclass's field: it holds what is called, and may change as it is."""


def identity(problem: Problem, plan: Plan) -> dict[str, str]:
    """Return all that decides a search's result, as texts that can be compared."""
    return {
        **asked(problem),
        "target": f"{plan.total} of {problem.units.count}"
        + ("" if plan.quota is None else f" {plan.quota.tolist()}"),
        "schedule": described(plan.schedule),
        "criterion": described(plan.criterion),
        "recovery": described(plan.recovery),
        "finish": described(plan.finish),
    }


def asked(problem: Problem) -> dict[str, str]:
    """Return all of a problem that decides what a search finds, and what it runs on."""
    units = problem.units
    own = problem.teacher is not problem.model
    return {
        "format": str(_FORMAT),
        "de_plugin": version.__version__,
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "device": problem.device.type,
        "model": _state(problem.model),
        **({"teacher": _state(problem.teacher)} if own else {}),
        "units": f"{units.granularity.name}: " + _short({x.name: x.count for x in units.layers}),
        "divergence": described(problem.divergence),
        "forward": _called(problem.forward),
        "data": f"{problem.pool.samples} samples {problem.pool.digest:08x}",
        "split": f"{len(problem.search)} {len(problem.held_back)}",
        "held back": _digest(problem.held_back),
        "batch_size": str(problem.pool.batch_size),
        "seed": str(problem.seed),
    }


def _state(model: nn.Module) -> str:
    parts = (*model.named_parameters(), *model.named_buffers())
    return _short({name: _digest(x) for name, x in parts})


def described(value: Any) -> str:
    """Return a text that is the same in every process, for anything a search is set up with."""
    if any(value is other for other in _DESCRIBED.get()):
        return "itself"  # a function that calls itself, or objects that know each other
    token = _DESCRIBED.set((*_DESCRIBED.get(), value))
    try:
        return _described(value)
    finally:
        _DESCRIBED.reset(token)


def _described(value: Any) -> str:
    if is_dataclass(value) and not isinstance(value, type):
        shown = [f for f in fields(value) if f.repr]
        told = [
            _called(getattr(value, f.name)) if _CALLED in f.metadata else described(getattr(value, f.name))
            for f in shown
        ]
        inside = ", ".join(f"{f.name}={text}" for f, text in zip(shown, told, strict=True))
        return f"{type(value).__qualname__}({inside})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{described(k)}: {described(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(described(x) for x in value) + "]"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(described, value))) + "}"
    if isinstance(value, Tensor):
        return f"tensor {_digest(value)}"
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"array {value.dtype} {value.shape} {zlib.crc32(value.tobytes()):08x}"
    if value is None or isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, FunctionType):
        code = zlib.crc32(code_text(value.__code__).encode())
        held = [
            *(cell.cell_contents for cell in value.__closure__ or ()),
            value.__defaults__,
            value.__kwdefaults__,
        ]
        return f"{value.__qualname__} {code:08x} {described(held)}"
    if isinstance(value, MethodType):
        return f"{described(value.__func__)} of {_called(value.__self__)}"
    if isinstance(value, partial):
        return f"partial {described([value.func, value.args, value.keywords])}"
    if hasattr(value, "__qualname__"):
        owner = getattr(value, "__objclass__", value)  # methods of types in C have no module of their own
        return f"{getattr(value, '__module__', None) or owner.__module__}.{value.__qualname__}"
    kind = type(value)
    attributes = {} if isinstance(value, nn.Module) else getattr(value, "__dict__", {})
    return f"{kind.__module__}.{kind.__qualname__} {described(attributes)}"


def code_text(code: CodeType) -> str:
    """Return what a function does, its constants and inner functions with it."""
    constants = [
        code_text(x)
        if isinstance(x, CodeType)
        else repr(sorted(map(repr, x)) if isinstance(x, frozenset) else x)
        for x in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _called(value: Any) -> str:
    """Describe what is called as a search works; an object's attributes don't count, they may change then."""
    plain = (
        is_dataclass(value) or isinstance(value, partial) or hasattr(value, "__qualname__") or value is None
    )
    return described(value) if plain else type(value).__qualname__


def _digest(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} {fingerprint([x]):08x}"


def _short(parts: Mapping[str, Any]) -> str:
    whole = json.dumps(parts)
    return f"{len(parts)} tensors {zlib.crc32(whole.encode()):08x}"


def saved(problem: Problem) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what a search has changed and learnt: tensors, and plain data."""
    model = problem.model
    tensors = {f"model/{name}": x for name, x in (*model.named_parameters(), *model.named_buffers())}
    tensors["kept"] = problem.kept
    plain: dict[str, dict[str, Any]] = {}
    for owner, values in problem.state.items():
        plain[owner] = {k: v for k, v in values.items() if not isinstance(v, Tensor)}
        tensors |= {f"state/{owner}/{k}": v for k, v in values.items() if isinstance(v, Tensor)}
    return tensors, {
        "state": plain,
        "events": problem.events,
        "evaluations": problem.evaluations,
        "sample_evaluations": problem.sample_evaluations,
    }


def restore(problem: Problem, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Bring a fresh problem to where `saved` found another one."""
    model = problem.model
    with torch.no_grad():
        for name, x in (*model.named_parameters(), *model.named_buffers()):
            x.data.copy_(tensors[f"model/{name}"])
    problem.kept = tensors["kept"]
    problem.state.clear()
    problem.state.update(state["state"])
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "state":
            owner, _, key = rest.rpartition("/")
            problem.state.setdefault(owner, {})[key] = value
    problem.events[:] = state["events"]
    problem.evaluations = state["evaluations"]
    problem.sample_evaluations = state["sample_evaluations"]


class Checkpoint:
    """The file of one search in a folder of its own.

    Args:
        folder: where it is; made if it does not exist.
        identity: of the search that is going to use it.
        name: of the file, without its ending.

    Raises:
        ArgumentError: the folder is no path.
        CheckpointError: it cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: dict[str, str], name: str = _FILE) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise ArgumentError(f"checkpoint={folder!r}: expected the path of a folder")
        self.path = Path(folder) / f"{name}.safetensors"
        self._identity = identity
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for stale in self.path.parent.glob(f"{self.path.stem}.*.tmp"):  # of a search that was killed
                stale.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint={str(folder)!r}: {error}; give a folder that can be made"
            ) from error

    def part(self, name: str) -> Checkpoint:
        """Return the place of a piece of work within the search, such as a training, by its name."""
        return Checkpoint(
            self.path.parent, {**self._identity, "part": name}, f"{self.path.stem}{_PART}{name}"
        )

    def forget_parts(self) -> None:
        """Delete what was kept of work that is done."""
        mine = f"{self.path.stem}{_PART}*"  # those of a write that was killed, too
        for path in self.path.parent.glob(mine):
            path.unlink(missing_ok=True)

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write everything or nothing: a new file takes the old one's place when it is complete."""
        fresh = self.path.with_suffix(f".{os.getpid()}.tmp")
        metadata = {"identity": json.dumps(self._identity), "state": json.dumps(state)}
        contiguous = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
        try:
            save_file(contiguous, fresh, metadata)
            with fresh.open("rb") as written:
                os.fsync(written.fileno())
            fresh.replace(self.path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"checkpoint: {self.path} cannot be written ({error}); make room or give another folder"
            ) from error
        finally:
            fresh.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and the state that were saved last, or None when there are none.

        Raises:
            CheckpointError: the file is damaged, or another search has written it.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
            known, state = json.loads(metadata["identity"]), json.loads(metadata["state"])
            compare(self.path, known, self._identity)
            return load_file(self.path), state
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"checkpoint: {self.path} is damaged ({error}); delete it to begin anew"
            ) from error


def _brief(text: str | None) -> str:
    return f"{text}" if text is None or len(text) <= _BRIEF else f"{text[:_BRIEF]} and so on"


def compare(path: Path, known: Mapping[str, str], mine: Mapping[str, str]) -> None:
    """Refuse what another search has written.

    Args:
        path: of the file.
        known: identity of the search that wrote it.
        mine: identity of this one.

    Raises:
        CheckpointError: they differ; the message tells in what.
    """
    names = [n for n in {**mine, **known} if known.get(n) != mine.get(n)]
    if names:
        parts = [f"{n} was {_brief(known.get(n))}, is {_brief(mine.get(n))}" for n in names]
        raise CheckpointError(
            f"checkpoint: {path} belongs to another search: {'; '.join(parts)}. Repeat that search with the "
            "same arguments, or give another folder"
        )
