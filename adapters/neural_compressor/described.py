"""A config of the host as plain values: by name, in dicts and files, copied and compared."""

from __future__ import annotations

import copy
import inspect
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neural_compressor.torch.quantization.config import TorchBaseConfig

from de_plugin.adapters.neural_compressor.resolving import ForeignError, is_plain
from de_plugin.adapters.neural_compressor.settings import SHARED, same
from de_plugin.encode.files import whole
from de_plugin.errors import ArgumentError

if TYPE_CHECKING:
    from typing_extensions import Self

_DATA = ("batches", "teacher", "forward")


class Described(TorchBaseConfig):
    """Keeps every argument under its own name; data and networks are shared, never copied or written."""

    @classmethod
    def parameters(cls) -> list[str]:
        """Return the names of the arguments."""
        names = list(inspect.signature(cls.__init__).parameters)
        return [n for n in names if n not in ("self", "kwargs")]

    def get_params_dict(self) -> dict[str, Any]:
        """Return the arguments but the white list, by name."""
        return {name: getattr(self, name) for name in self.parameters() if name != "white_list"}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; data, networks and functions are left out."""
        plain = {n: v for n, v in self.get_params_dict().items() if n not in _DATA and is_plain(v)}
        if not self.local_config:
            return plain
        result: dict[str, Any] = {"local": {n: c.to_dict() for n, c in self.local_config.items()}}
        return {**result, "global": plain} if self.global_config else result

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Self:
        """Return the config that `to_dict` was made of.

        Raises:
            ArgumentError: a key is none of the arguments, "global" or "local".
        """
        if not {"global", "local"} & set(config_dict):
            return cls(**config_dict)
        if strangers := sorted(set(config_dict) - {"global", "local"}):
            raise ArgumentError(f"{strangers[0]!r}: beside 'global' and 'local' there is no other key")
        whole = config_dict.get("global")
        config = cls(**whole) if whole is not None else cls(white_list=None)
        for name, values in (config_dict.get("local") or {}).items():
            config.set_local(name, cls(**values))
        return config

    @classmethod
    def from_json_file(cls, filename: str) -> Self:
        """Return the config of a file that `to_json_file` has written."""
        return cls.from_dict(json.loads(Path(filename).read_text(encoding="utf-8")))

    def to_json_file(self, filename: str | os.PathLike[str]) -> None:
        """Write the config, whole or not at all; data, networks and functions are left out.

        Raises:
            ArgumentError: something else cannot be written.
        """
        for config in (self, *self.local_config.values()):
            for name, value in config.get_params_dict().items():
                if name not in (*_DATA, "divergence") and not is_plain(value):
                    raise ArgumentError(
                        f"{name}={value!r}: cannot be written to a file; give a name or numbers, or keep the "
                        "config in code"
                    )
        if strangers := [key for key in self.local_config if not isinstance(key, str)]:
            raise ArgumentError(
                f"white_list, set_local: the type {getattr(strangers[0], '__name__', strangers[0])} cannot "
                "be written to a file; give names or regular expressions"
            )
        with whole(Path(filename)) as draft:
            draft.write_text(self.to_json_string(), encoding="utf-8")

    def _same_arguments(self, other: Described) -> bool:
        mine, theirs = self.get_params_dict(), other.get_params_dict()
        return all(same(value, theirs[name]) for name, value in mine.items())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Described):
            return False
        return (
            self._same_arguments(other)
            and list(self.local_config.items()) == list(other.local_config.items())
            and bool(self.global_config == other.global_config)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy all but data, networks and levels, which are shared."""
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        kept = {*SHARED, "_fits", "_info"}
        for name, value in self.__dict__.items():
            result.__dict__[name] = value if name in kept else copy.deepcopy(value, memo)
        return result

    def __getattr__(self, name: str) -> Any:
        if name in ("use_sym", "quant_zero"):
            raise ForeignError(
                "DEQuantConfig beside TEQ or HQQ: the host's entries of those take every layer for theirs; "
                "quantize in two calls, each with a white_list"
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
