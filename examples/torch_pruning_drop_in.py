"""Swap one line of a Torch-Pruning script: Directed Evolution instead of magnitude, on a trained LeNet-5."""

import torch_pruning as tp

from de_plugin.adapters.torch_pruning import DEPruner
from de_plugin.zoo import accuracy, mnist, teacher

SAMPLES = 1000


def main() -> None:
    """Halve the channels of every layer both ways, and compare."""
    data = mnist()
    for name in ("magnitude", "directed evolution"):
        model = teacher("lenet5", "mnist", epochs=2).eval()
        example = data.train_inputs[:1]
        options = {"pruning_ratio": 0.5, "ignored_layers": [model.fc2]}
        if name == "magnitude":
            pruner = tp.pruner.BasePruner(model, example, tp.importance.GroupMagnitudeImportance(), **options)
        else:  # the line that is swapped
            pruner = DEPruner(model, example, data.train_inputs[:SAMPLES], **options)
        pruner.step()
        macs, parameters = tp.utils.count_ops_and_params(model, example)
        percent = accuracy(model, data.test_inputs, data.test_labels)
        print(f"{name:20} {macs:12,.0f} MACs {parameters:9,.0f} parameters {percent:6.2f} %")


if __name__ == "__main__":
    main()
