"""The whole way in one call: a trained network, a tenth of its weights, few levels, and a small file."""

import tempfile
from pathlib import Path

import torch

import de_plugin
from de_plugin import DirectedEvolution
from de_plugin.quantize import RateSearch
from de_plugin.zoo import MODELS, accuracy, mnist, teacher


def main() -> None:
    """Compress a network that reads digits, and compare what the file holds with the original."""
    data = mnist()
    torch.set_num_threads(1)  # enough for a network as small as this
    model = teacher("mlpnet", data).eval()
    dense = accuracy(model, data.test_inputs, data.test_labels)
    size = 4 * sum(p.numel() for p in model.parameters())
    print(f"{'original':20} {size:9,} bytes {dense:6.2f} %")
    batches = data.train_inputs[:1000]  # no labels
    # A short search; leave both out for a longer one.
    pruning = {"criterion": DirectedEvolution.brief(), "schedule": 2}
    quantizing = {"search": RateSearch(generations=2), "levels": None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.de.safetensors"
        found = de_plugin.compress(model, batches, path, 0.9, pruning=pruning, quantizing=quantizing)
        again = MODELS["mlpnet"]().eval()
        de_plugin.load(path, into=again)
    percent = accuracy(again, data.test_inputs, data.test_labels)
    print(f"{'compressed':20} {found.bytes:9,} bytes {percent:6.2f} %")


if __name__ == "__main__":
    main()
