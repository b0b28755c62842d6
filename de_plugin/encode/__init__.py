"""How many bytes: a network written losslessly into a small file."""

from de_plugin.encode.export import to_dense, to_onnx, to_sparse_csr
from de_plugin.encode.info import Info, Layer
from de_plugin.encode.inspect import inspect
from de_plugin.encode.load import File, load, loads, open_file
from de_plugin.encode.quantized import Quantized
from de_plugin.encode.save import dumps, packed, save

__all__ = [
    "File",
    "Info",
    "Layer",
    "Quantized",
    "dumps",
    "inspect",
    "load",
    "loads",
    "open_file",
    "packed",
    "save",
    "to_dense",
    "to_onnx",
    "to_sparse_csr",
]
