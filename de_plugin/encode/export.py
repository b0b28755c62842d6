"""Hands a network on in the formats of others: dense safetensors, torch's sparse tensors, ONNX."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from de_plugin.encode.files import whole
from de_plugin.encode.load import open_file
from de_plugin.errors import ArgumentError, FileError, MissingDependencyError, OutputError

_TOLERANCE = 1e-3  # of the largest output; half precision gets the square root of it


def to_dense(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, max_bytes: int | None = None
) -> None:
    """Write the tensors of a compressed file to a plain safetensors file, which everyone can read.

    Args:
        path: the compressed file.
        out: the new file; an old one is replaced. Tied tensors are written once each.
        max_bytes: as in `de_plugin.encode.open_file`.

    Raises:
        FileError: the compressed file cannot be read, or the new one cannot be written.
    """
    with open_file(path, max_bytes=max_bytes) as file, whole(out) as draft:
        try:
            save_file({name: file[name].contiguous() for name in file}, draft, dict(file.metadata))
        except SafetensorError as error:
            raise FileError(f"{out} cannot be written ({error})") from error


def to_sparse_csr(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with each floating-point matrix as a sparse CSR tensor, the rest unchanged.

    Args:
        state: dense tensors; matrices are those of two dimensions.

    >>> to_sparse_csr({"weight": torch.eye(3)})["weight"].values()
    tensor([1., 1., 1.])
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return {
            name: tensor.to_sparse_csr()
            if tensor.dim() == 2 and tensor.layout == torch.strided and tensor.is_floating_point()
            else tensor
            for name, tensor in state.items()
        }


def to_onnx(
    model: nn.Module, example: Tensor | tuple[Tensor, ...], out: str | os.PathLike[str]
) -> float | None:
    """Write a model to an ONNX file, and compare what it computes with the model.

    The first dimension of every input may differ later, if the model allows it and the example holds
    at least two samples. The model is exported in evaluation mode and comes back as it was.

    Args:
        model: with its weights loaded.
        example: inputs of the model.
        out: the file, which holds the weights; an old one is replaced.

    Returns:
        The largest difference between both outputs on the example, relative to the largest output;
        None where onnxruntime is not installed.

    Raises:
        ArgumentError: the model cannot be exported.
        FileError: the file cannot be written.
        MissingDependencyError: the packages of the extra "export" are not installed.
        OutputError: the file computes something else; it is not kept.
    """
    lacking = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if lacking:
        raise MissingDependencyError(f"to_onnx needs {', '.join(lacking)}: pip install 'de_plugin[export]'")
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), whole(out) as draft:
            _export(model, inputs, draft)
            return _difference(model, inputs, draft)
    finally:
        for module, mode in training.items():
            module.training = mode


def _export(model: nn.Module, inputs: tuple[Tensor, ...], draft: Path) -> None:
    """Write the file."""
    try:
        automatic: Any = torch.export.Dim.AUTO
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch and onnxscript tell each other
            program = torch.onnx.export(
                model,
                inputs,
                dynamo=True,
                verbose=False,
                dynamic_shapes=tuple({0: automatic} if given.dim() else None for given in inputs),
            )
            if program is None:
                raise RuntimeError("torch.onnx.export returned nothing")
            program.save(draft, external_data=False)
    except OSError:
        raise
    except Exception as error:  # the exporter raises whatever went wrong inside it
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ArgumentError(
            f"model: {type(model).__name__} cannot be exported to ONNX ({reason[0]}): see that "
            "torch.export.export takes it with this example"
        ) from error


def _difference(model: nn.Module, inputs: tuple[Tensor, ...], draft: Path) -> float | None:
    """Compare the file with the model."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(os.fspath(draft), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    found = session.run(None, {name: given.cpu().numpy() for name, given in zip(names, inputs, strict=True)})
    expected = list(_tensors(model(*inputs)))
    worst = 0.0
    tolerance = _TOLERANCE
    for wanted, given in zip(expected, found, strict=True):
        reference, other = wanted.double().cpu(), torch.from_numpy(given).double()
        if reference.shape != other.shape or not bool(torch.isfinite(other).all()):
            raise OutputError(
                f"the ONNX file returns {tuple(other.shape)}, the model {tuple(reference.shape)}; "
                "all of it must be finite"
            )
        if reference.numel():
            worst = max(worst, float((reference - other).abs().max() / reference.abs().max().clamp(min=1e-9)))
        if wanted.dtype.itemsize < 4:
            tolerance = _TOLERANCE**0.5
    if not worst <= tolerance:
        raise OutputError(
            f"the ONNX file's outputs differ from the model's by {worst:.2g} of the largest, expected at "
            f"most {tolerance:.2g}: the file was not kept"
        )
    return worst


def _tensors(output: object) -> Iterator[Tensor]:
    """Return the tensors of an output, in their order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for part in output:
            yield from _tensors(part)
