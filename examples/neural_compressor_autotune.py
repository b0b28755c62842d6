"""Swap one line of a Neural Compressor script: every layer gets the bits it needs, convolutions too."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from neural_compressor.torch.quantization import RTNConfig, TuningConfig, autotune

from de_plugin.adapters.neural_compressor import DEQuantConfig, tune
from de_plugin.zoo import accuracy, mnist, teacher


def main() -> None:
    """Quantize a network both ways, within half a percent of its accuracy, and compare the files."""
    data = mnist()
    logging.getLogger("neural_compressor").setLevel("ERROR")  # it tells every step
    model = teacher("lenet5", "mnist", epochs=2).eval()

    def score(network: torch.nn.Module) -> float:
        return accuracy(network, data.train_inputs[-1000:], data.train_labels[-1000:])

    for name in ("round to nearest", "directed evolution"):
        if name == "round to nearest":
            config = RTNConfig(bits=[4, 6, 8], use_layer_wise=False)
            found: Any = autotune(model, TuningConfig([config], tolerable_loss=0.005), score)
        else:  # the line that is swapped
            levels = DEQuantConfig(bits=[2, 3, 4], codebook="entropy", price=0.1, rounding="compensated")
            images = data.train_inputs[:256]
            found = tune(model, score, levels, tolerable_loss=0.005, batches=images, max_trials=4).model
        with tempfile.TemporaryDirectory() as folder:
            found.save(folder)
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
        print(f"{name:20} {size:9,} bytes {accuracy(found, data.test_inputs, data.test_labels):6.2f} %")


if __name__ == "__main__":
    main()
