"""Reads a network from a compressed file: all of it, or tensor by tensor."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from types import TracebackType

import torch
from torch import Tensor, nn

from de_plugin.encode.coder import decode_symbols
from de_plugin.encode.container import Container
from de_plugin.encode.entry import Entry
from de_plugin.encode.frame import FileSource, MemorySource
from de_plugin.encode.planes import decode_floats
from de_plugin.errors import DEError, FileError

_LISTED = 10  # names that a message lists


class File(Mapping[str, Tensor]):
    """The tensors of a compressed file; each is decoded, on the CPU, whenever it is asked for.

    Close it, or use it in a ``with`` statement. Threads may share it.

    Attributes:
        metadata: the user's.
        container: entries, tables and streams.
    """

    def __init__(self, container: Container) -> None:
        self.container = container
        self.metadata = container.metadata
        self._index = {entry.name: place for place, entry in enumerate(container.manifest.entries)}

    def __getitem__(self, name: str) -> Tensor:
        """Decode a tensor.

        Raises:
            KeyError: the file has no tensor of this name.
            FileError: its part of the file is damaged or cannot be read, or memory runs out.
        """
        entry, held = self.held(name)
        if entry.table is None:
            return held
        table = self.container.manifest.tables[entry.table]
        with _telling(self.container.name, name):
            return table.values(held, entry.axis).to(entry.dtype)

    def held(self, name: str) -> tuple[Entry, Tensor]:
        """Return the description of a tensor and what its stream holds: int32 symbols, or the tensor.

        Where it is tied to another, the description is the other's.

        Raises:
            KeyError: the file has no tensor of this name.
            FileError: its part of the file is damaged or cannot be read, or memory runs out.
        """
        place = self._index[name]
        entries = self.container.manifest.entries
        same = entries[place].same
        place = place if same is None else same
        entry = entries[place]
        stream = self.container.stream(place)
        with _telling(self.container.name, name):
            if entry.table is not None:
                return entry, decode_symbols(stream, entry.shape)
            return entry, _exact(stream, entry)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def __enter__(self) -> File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_file(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> File:
    """Open a compressed file to read it tensor by tensor.

    Args:
        path: the file.
        max_bytes: the memory that all tensors together may need. None: half a GiB or 4,096 times the
            file's length, whichever is more, and at most 64 GiB.

    Raises:
        FileError: the file is missing, damaged, of a newer version, no compressed network, or too large.
    """
    return File(Container(FileSource(path), max_bytes))


def load(
    path: str | os.PathLike[str], into: nn.Module | None = None, *, max_bytes: int | None = None
) -> dict[str, Tensor]:
    """Read all tensors of a compressed file.

    Args:
        path: the file.
        into: a model that gets the values; it must have exactly the file's names, shapes and types.
        max_bytes: as in `open_file`.

    Returns:
        The state dict that was saved: on the CPU, in the types and the order they had; what shared
        its memory does so again.

    Raises:
        FileError: as `open_file`, or the model differs; all differences are listed, and the model is
            as before.
    """
    with open_file(path, max_bytes=max_bytes) as file:
        return _load(file, into)


def loads(data: bytes, into: nn.Module | None = None, *, max_bytes: int | None = None) -> dict[str, Tensor]:
    """Read all tensors of the bytes of a compressed file, as `load` does.

    Raises:
        FileError: as `load`.
    """
    with File(Container(MemorySource(data), max_bytes)) as file:
        return _load(file, into)


def _load(file: File, into: nn.Module | None) -> dict[str, Tensor]:
    """Check first, then decode, then copy."""
    file.container.verify()
    entries = file.container.manifest.entries
    if into is not None:
        _compare(entries, into, file.container.name)
    state: dict[str, Tensor] = {}
    for entry in entries:
        state[entry.name] = file[entry.name] if entry.same is None else state[entries[entry.same].name]
    if into is not None:
        _copy(state, into)
    return state


def _compare(entries: tuple[Entry, ...], model: nn.Module, name: str) -> None:
    """Refuse a model that the entries don't fit exactly."""
    found = {entry.name: entry for entry in entries}
    expected = model.state_dict()
    problems = []
    for what, names in (
        ("missing", expected.keys() - found.keys()),
        ("unexpected", found.keys() - expected.keys()),
    ):
        if names:
            problems.append(f"{what}: {_some(sorted(names))}")
    differing = []
    for key in found.keys() & expected.keys():
        entry, target = found[key], expected[key]
        if not isinstance(target, Tensor) or target.is_meta:
            differing.append(f"{key} is a tensor with values, the model's is not (call to_empty() first)")
        elif (entry.shape, entry.dtype) != (tuple(target.shape), target.dtype):
            differing.append(
                f"{key} is {entry.dtype} {entry.shape}, the model's {target.dtype} {tuple(target.shape)}"
            )
    if differing:
        problems.append(_some(sorted(differing), "; "))
    if problems:
        raise FileError(
            f"{name} does not fit {type(model).__name__}: {'; '.join(problems)}. Build the model that it was "
            "made of, or read it without one"
        )


def _copy(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copy all values into the model, or none."""
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    try:
        model.load_state_dict(state)
    except BaseException as error:
        model.load_state_dict(before)
        if isinstance(error, RuntimeError):
            raise FileError(f"{type(model).__name__} does not take the values: {error}") from error
        raise


def _exact(stream: bytes, entry: Entry) -> Tensor:
    """Return the tensor of a stream that is packed, or as long as the tensor itself."""
    if not entry.elements:
        if stream:
            raise FileError(f"{len(stream)} bytes for an empty tensor")
        return torch.empty(entry.shape, dtype=entry.dtype)
    if len(stream) == entry.dense_bytes:
        tensor = torch.frombuffer(bytearray(stream), dtype=torch.uint8).view(entry.dtype).reshape(entry.shape)
    else:
        tensor = decode_floats(stream, entry.dtype, entry.shape)
    if entry.dtype == torch.bool and int(tensor.reshape(-1).view(torch.uint8).max()) > 1:
        raise FileError("a boolean is neither 0 nor 1")
    return tensor


@contextlib.contextmanager
def _telling(file: str, name: str) -> Iterator[None]:
    """Say which entry of which file could not be decoded."""
    try:
        yield
    except MemoryError as error:
        raise FileError(f"{file}: entry {name!r} needs more memory than there is") from error
    except RuntimeError as error:  # torch's own way to say so
        if "allocate" not in str(error):
            raise
        raise FileError(f"{file}: entry {name!r} needs more memory than there is") from error
    except DEError as error:
        raise FileError(f"{file}: entry {name!r}: {error}") from error


def _some(names: list[str], between: str = ", ") -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - _LISTED
    return between.join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
