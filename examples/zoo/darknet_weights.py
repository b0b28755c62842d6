"""Reads a Darknet weights file: a header with a version, then float32 numbers layer by layer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from de_plugin.errors import DataError

from .darknet_layers import Convolutional


@torch.no_grad()
def read_weights(layers: Sequence[Convolutional], path: str | os.PathLike[str]) -> None:
    """Fill layers with the numbers of a weights file.

    The length of the file is compared before memory is taken: layers on the meta device get theirs
    on the CPU only then.

    Args:
        layers: all of the network's, in its order.
        path: the file, of any version: up to 0.1 the header has 16 bytes, from 0.2 on 20.

    Raises:
        DataError: the file is missing, is not a weights file, holds more or fewer numbers than the
            layers have, or one that is not finite or a variance below 0; unless the length is wrong
            the layers may then be partly filled.
    """
    file = Path(path).expanduser()
    try:
        with file.open("rb") as stream:
            version = np.fromfile(stream, "<i4", 3).tolist()
            if len(version) < 3 or min(version) < 0:
                raise DataError(
                    f"{file} starts with {version}, expected major version, minor version and revision: "
                    "give a Darknet weights file"
                )
            major, minor, _ = version
            # The images seen in training, as the C program's load_weights_upto reads them.
            wide = 10 * major + minor >= 2 and major < 1000 and minor < 1000
            start = 20 if wide else 16
            expected = sum(tensor.numel() for layer in layers for tensor in layer.file_order())
            found = file.stat().st_size - start
            if found != 4 * expected:
                raise DataError(
                    f"{file} holds {found:,} bytes behind its header of {start}, expected {4 * expected:,} "
                    f"for the {expected:,} numbers of the network: the file is "
                    f"{'truncated' if found < 4 * expected else 'too long'}, or belongs to another cfg; "
                    "download it again, or give its own cfg"
                )
            stream.seek(start)
            for number, layer in enumerate(layers, 1):
                layer.to_empty(device=_device(layer))
                for buffer in layer.buffers():
                    buffer.zero_()  # the count of batches, which isn't in the file
                for tensor in layer.file_order():
                    values = np.fromfile(stream, "<f4", tensor.numel())
                    if len(values) < tensor.numel() or not np.isfinite(values).all():
                        raise DataError(
                            f"{file} ends within or has a number that is not finite in convolutional layer "
                            f"{number} of {len(layers)}: download the file again"
                        )
                    tensor.copy_(
                        torch.from_numpy(values.astype(np.float32, copy=False)).reshape(tensor.shape)
                    )
                variance = getattr(layer.norm, "running_var", None)
                if variance is not None and bool((variance < 0).any()):
                    raise DataError(
                        f"{file} has a variance below 0 in convolutional layer {number} of {len(layers)}: it "
                        "belongs to another cfg; give its own cfg"
                    )
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}): give a Darknet weights file") from error


def _device(layer: Convolutional) -> torch.device:
    device = layer.conv.weight.device
    return torch.device("cpu") if device.type == "meta" else device
