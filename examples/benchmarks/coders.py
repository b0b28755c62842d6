"""The project's coder against others on identical symbols: bytes, and seconds to encode and decode.

LeNet-300-100 and LeNet-5 (trained on MNIST), and with `--cfg` and `--weights` a Darknet network: the largest
weights stay, on the nearest of 15 levels a layer (4 bits). With `--random-cfg` a network of seeded weights,
for the time. Each tensor of weights is coded alone, without names or levels. Coders: "de"; "static range",
constriction's range coder with each layer's histogram, whose table is counted at four bytes a symbol; zstd 22
and xz, on one byte a symbol; and "nncodec", the arithmetic coder of PyPI nncodec (DeepCABAC) at the best of
its scans, in a Python of its own: `--nncodec-python PATH`. The entropy is that of each layer's histogram.
"""

from __future__ import annotations

import argparse
import json
import lzma
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from constriction import stream
from rows import versions, write
from torch import nn

from de_plugin.encode.coder import decode_symbols, encode_symbols
from de_plugin.zoo import darknet, teacher

Symbols = npt.NDArray[np.int32]
Layers = dict[str, Symbols]
Coded = tuple[int, float, float | None]
"""Bytes, seconds to encode, and to decode; None where that is not timed."""
LEVELS = 7
NNCODEC = """
import json, sys, time
import numpy as np
from nncodec.extensions import deepCABAC
from nncodec.extensions.deepCABAC import HdspMode

def size(a, scan, row):
    coder = deepCABAC.Encoder()
    coder.initCtxModels(10, 1)
    skip = (~np.any(a.reshape(a.shape[0], -1), axis=1)).astype(np.int32)
    coder.encodeLayer(a, 0, scan, 1, 0, row, skip, HdspMode.AlwaysOff, np.array((0, 0), dtype=np.int8), 0, 0)
    return len(coder.finish().tobytes())

total = 0
started = time.perf_counter()
for a in np.load(sys.argv[1]).values():
    a = np.ascontiguousarray(a)
    total += min(size(a, scan, row) for scan in (range(5) if a.size < 6e6 else (0,)) for row in (0, 1))
print(json.dumps({"bytes": total, "encode_seconds": time.perf_counter() - started}))
"""


def quantized(weights: dict[str, torch.Tensor], sparsity: float) -> Layers:
    """Return the symbols of the largest weights of all layers together."""
    sizes = torch.cat([w.abs().flatten() for w in weights.values()])
    gone = round(sparsity * len(sizes))
    least = float(np.partition(sizes.numpy(), gone)[gone]) if gone else 0.0
    result = {}
    for name, weight in weights.items():
        kept = torch.where(weight.abs() >= least, weight, 0)
        step = float(kept.abs().max()) / LEVELS or 1.0
        result[name] = (kept / step).round().to(torch.int32).numpy()
    return result


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of matrices and kernels."""
    return {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}


def entropy(layers: Layers) -> float:
    """Return the bytes of an ideal coder that knows each layer's histogram, and no more."""
    total = 0.0
    for symbols in layers.values():
        counts = np.unique(symbols, return_counts=True)[1]
        total -= float((counts * np.log2(counts / symbols.size)).sum())
    return total / 8


def ours(layers: Layers) -> tuple[int, float, float]:
    """Return bytes and seconds of the project's coder."""
    started = time.process_time()
    data = [encode_symbols(symbols) for symbols in layers.values()]
    middle = time.process_time()
    back = [decode_symbols(x, s.shape).numpy() for x, s in zip(data, layers.values(), strict=True)]
    ended = time.process_time()
    if not all(np.array_equal(a, b) for a, b in zip(back, layers.values(), strict=True)):
        raise RuntimeError("the symbols did not come back")
    return sum(map(len, data)), middle - started, ended - middle


def static(layers: Layers) -> tuple[int, float, float]:
    """Return bytes and seconds of a range coder with each layer's histogram."""
    total, encoding, decoding = 0, 0.0, 0.0
    for symbols in layers.values():
        started = time.process_time()
        kinds, index, counts = np.unique(symbols, return_inverse=True, return_counts=True)
        total += 4 * len(kinds)
        if len(kinds) < 2:
            continue
        model = stream.model.Categorical(counts / counts.sum(), perfect=False)
        encoder = stream.queue.RangeEncoder()
        encoder.encode(index.reshape(-1).astype(np.int32), model)
        words = encoder.get_compressed()
        total += 4 * len(words)
        middle = time.process_time()
        stream.queue.RangeDecoder(words).decode(model, symbols.size)
        encoding, decoding = encoding + middle - started, decoding + time.process_time() - middle
    return total, encoding, decoding


def general(
    layers: Layers, pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]
) -> tuple[int, float, float]:
    """Return bytes and seconds of a coder for any bytes; each layer alone."""
    raw = [symbols.astype(np.int8).tobytes() for symbols in layers.values()]
    started = time.process_time()
    data = [pack(x) for x in raw]
    middle = time.process_time()
    for x in data:
        unpack(x)
    return sum(map(len, data)), middle - started, time.process_time() - middle


def coders(python: Path | None) -> dict[str, Callable[[Layers], Coded]]:
    """Return the coders that can run here, by name."""
    found: dict[str, Callable[[Layers], Coded]] = {"de": ours, "static range": static}
    found["xz"] = lambda layers: general(
        layers, lambda x: lzma.compress(x, preset=9 | lzma.PRESET_EXTREME), lzma.decompress
    )
    try:
        import zstandard
    except ImportError:
        sys.stderr.write("zstd is left out: pip install zstandard\n")
    else:
        zstd = zstandard.ZstdCompressor(level=22)
        found["zstd-22"] = lambda layers: general(
            layers, zstd.compress, zstandard.ZstdDecompressor().decompress
        )
    if python is not None:
        found["nncodec"] = lambda layers: nncodec(layers, python)
    return found


def nncodec(layers: Layers, python: Path) -> Coded:
    """Return the bytes of DeepCABAC; its decoder is not timed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "symbols.npz"
        np.savez(path, *layers.values())
        done = subprocess.run(
            [str(python), "-c", NNCODEC, str(path)], capture_output=True, text=True, check=True
        )
    told = json.loads(done.stdout)
    return told["bytes"], told["encode_seconds"], None


def main() -> None:
    """Measure every network, sparsity and coder, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.9, 0.95, 0.98, 0.99])
    parser.add_argument("--cfg", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--random-cfg", type=Path)
    parser.add_argument("--nncodec-python", type=Path)
    parser.add_argument("--coders", nargs="+")
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks = {name: weights_of(teacher(name, "mnist")) for name in ("lenet300", "lenet5")}
    if options.cfg is not None:
        networks[options.cfg.stem] = weights_of(darknet(options.cfg, options.weights))
    if options.random_cfg is not None:
        torch.manual_seed(0)
        networks[options.random_cfg.stem] = weights_of(darknet(options.random_cfg))
    rows: list[dict[str, Any]] = []
    for network, weights in networks.items():
        for sparsity in options.sparsity:
            layers = quantized(weights, sparsity)
            bound = entropy(layers)
            for name, coder in coders(options.nncodec_python).items():
                if options.coders and name not in options.coders:
                    continue
                size, encoding, decoding = coder(layers)
                rows.append(
                    {
                        "network": network,
                        "sparsity": sparsity,
                        "coder": name,
                        "bytes": size,
                        "ratio_to_entropy": size / bound,
                        "encode_seconds": encoding,
                        "decode_seconds": decoding,
                    }
                )
                print(rows[-1], flush=True)
                write(options.json, {"versions": versions({"numpy": np.__version__}), "rows": rows})


if __name__ == "__main__":
    main()
