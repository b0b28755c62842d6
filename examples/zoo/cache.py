"""The cache folder, and safetensors files in it that are whole or not there at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from de_plugin.errors import DataError, DEWarning


def cache_folder() -> Path:
    """Where the zoo keeps data and trained weights: DE_PLUGIN_CACHE, or the platform's cache."""
    chosen = os.environ.get("DE_PLUGIN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    try:
        import pooch
    except ImportError:
        return Path.home() / ".cache" / "de_plugin"
    return Path(pooch.os_cache("de_plugin"))


def store(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; readers see the old file or the new one, never a part.

    What cannot be cached is only slower the next time, so a cache that cannot be written is
    warned about (``DEWarning``), not an error.

    Args:
        path: the file; its folder is made.
        tensors: on any device and of any layout; they are not changed.
        metadata: text for the header.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(whole, draft, dict(metadata))
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"cannot write {path} ({error}): it will be fetched or made again the next time; set "
            "DE_PLUGIN_CACHE to a folder that can be written",
            DEWarning,
            stacklevel=2,
        )
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def recall(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        DataError: there is no such file, or it is not a whole safetensors file.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is not a whole safetensors file ({error}): delete it") from error
