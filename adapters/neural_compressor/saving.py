"""Networks with levels in small files, which really bring them back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from de_plugin import encode
from de_plugin.encode import Info, Quantized
from de_plugin.encode.entry import Entry
from de_plugin.encode.tables import Table
from de_plugin.errors import ArgumentError, FileError

FILE = "model.de.safetensors"
"""The file in the folder that `model.save(folder)` writes."""

_PLACE = "_de_levels"


@dataclass(frozen=True)
class Record:
    """What a model's weights are made of.

    Attributes:
        levels: by parameter name.
    """

    levels: Mapping[str, Quantized]

    def __deepcopy__(self, memo: dict[int, Any]) -> Record:
        """Return the same: levels never change."""
        return self


@dataclass(frozen=True, eq=False)
class Saving:
    """A model's own ``save``, which is pickled and copied with it.

    Attributes:
        model: to be saved.
    """

    model: nn.Module

    def __call__(self, output_dir: str = "saved_results", *args: Any, **kwargs: Any) -> None:
        """Write the model into a folder, as the host's ``save(model, folder)`` asks for."""
        told = {**dict(zip(("format",), args, strict=False)), **kwargs}
        if len(args) > 1 or told.pop("format", "default") not in ("default", None) or told:
            raise ArgumentError(
                f"model.save: got {(*args, *kwargs)} beside the folder, expected no more than "
                "format='default': one small file, which de_plugin.adapters.neural_compressor.load reads"
            )
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save(self.model, folder / FILE)


def attach(model: nn.Module, levels: Mapping[str, Quantized], mapping: Any = None) -> None:
    """Let a model know its levels, those that it had before and still has among them, and how it is saved."""
    record, live = getattr(model, _PLACE, None), _tensors(model)
    before = record.levels if isinstance(record, Record) else {}
    held = {n: q for n, q in before.items() if n in live and _is(live[n], q)}
    model.__dict__[_PLACE] = Record({**held, **levels})
    if mapping is not None:
        model.__dict__["qconfig"] = mapping
    model.__dict__["save"] = Saving(model)


def _is(tensor: Tensor, levels: Quantized) -> bool:
    """Tell whether a tensor is what its levels say."""
    return tensor.shape == levels.symbols.shape and torch.equal(
        levels.dequantize().to(tensor.dtype), tensor.detach().cpu()
    )


def levels_of(model: nn.Module) -> Mapping[str, Quantized]:
    """Return a model's levels by parameter name.

    Raises:
        ArgumentError: it has none, or its weights have changed since.
    """
    record = getattr(model, _PLACE, None)
    if not isinstance(record, Record):
        raise ArgumentError(
            f"model {type(model).__name__}: has no levels; quantize it with a DEQuantConfig first"
        )
    live = _tensors(model)
    for name, quantized in record.levels.items():
        now = live.get(name)
        if now is None or not _is(now, quantized):
            raise ArgumentError(
                f"model: {name} is not what its levels say; it was changed afterwards; quantize it again"
            )
    return record.levels


def state_of(
    model: nn.Module, levels: Mapping[str, Quantized]
) -> tuple[dict[str, Tensor | Quantized], dict[str, torch.dtype]]:
    """Return the state dict with levels in their places, and the types of those that are not float32."""
    live = _tensors(model)
    known: dict[int, Quantized] = {}  # one for all names that share their memory
    for name, quantized in levels.items():
        known.setdefault(live[name].data_ptr(), quantized)
    state: dict[str, Tensor | Quantized] = {}
    types = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        held = known.get(value.data_ptr()) if value.numel() else levels.get(name)
        if held is None or held.symbols.shape != value.shape:
            state[name] = value
            continue
        state[name] = held
        if value.dtype != torch.float32:
            types[name] = value.dtype
    return state, types


def save(model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> Info:
    """Write a quantized model to a small file, which is whole or not there at all.

    Args:
        model: with levels of a `DEQuantConfig`; other tensors are written bit for bit.
        path: the file, named ``*.de.safetensors`` by custom; or a folder, which gets one.
        metadata: text to go with it.

    Returns:
        What the file holds and where its bytes went.

    Raises:
        ArgumentError: the model has no levels, or its weights have changed since.
        FileError: the file cannot be written.
    """
    state, types = state_of(model, levels_of(model))
    place = Path(path)
    target = place / FILE if place.is_dir() else place
    return encode.save(target, state, metadata or {}, dtypes=types)


def load(path: str | os.PathLike[str], into: nn.Module) -> nn.Module:
    """Read a file of `save` or ``model.save`` into a model, which then knows its levels.

    Args:
        path: the file, or the folder that was given to ``model.save``.
        into: a model of the same architecture; it gets the values in place.

    Returns:
        `into`.

    Raises:
        FileError: the file is missing or damaged, or the model differs; it is as before then.
    """
    if not isinstance(into, nn.Module):
        raise ArgumentError(f"into={into!r}: expected a model of the architecture that was saved")
    place = Path(path)
    target = place / FILE if place.is_dir() else place
    if place.is_dir() and not target.exists():
        raise FileError(f"{path}: holds no {FILE}; give the folder that model.save was given, or a file")
    levels = {}
    with encode.open_file(target) as file:
        for name in file:
            entry, held = file.held(name)
            if entry.table is not None:
                levels[name] = _quantized(entry, held, file.container.manifest.tables[entry.table])
    encode.load(target, into=into)
    live = _tensors(into)
    attach(into, {name: q for name, q in levels.items() if name in live})
    into.__dict__["is_quantized"] = True
    return into


def _quantized(entry: Entry, symbols: Tensor, table: Table) -> Quantized:
    """Return a file's entry as it was before it was written."""
    numbers, lowest = table.numbers, table.lowest
    if lowest is None:
        low = min(0, int(symbols.min()) if symbols.numel() else 0)
        high = max(0, int(symbols.max()) if symbols.numel() else 0)
        numbers = numbers.reshape(-1, 1) * torch.arange(low, high + 1).float() + 0.0
        lowest = low
    return Quantized(symbols, numbers, lowest, entry.axis)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return {**named, **dict(model.named_buffers(remove_duplicate=False))}
