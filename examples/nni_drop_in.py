"""Swap one line of an NNI script: Directed Evolution instead of the L1 norm, then a smaller network."""

import warnings

warnings.simplefilter("ignore")  # NNI is older than the torch it runs on

from nni.compression.pruning import L1NormPruner  # noqa: E402

from de_plugin.adapters.nni import DEPruner, speedup  # noqa: E402
from de_plugin.zoo import accuracy, mnist, teacher  # noqa: E402


def main() -> None:
    """Mask half of the channels both ways, remove them, and compare."""
    data = mnist()
    config = [{"op_names": ["conv1", "conv2", "fc1"], "sparse_ratio": 0.5}]
    for name in ("l1 norm", "directed evolution"):
        model = teacher("lenet5", "mnist", epochs=2).eval()
        if name == "l1 norm":
            pruner = L1NormPruner(model, config)
        else:  # the line that is swapped
            pruner = DEPruner(model, config, batches=data.train_inputs[:1000])
        _, masks = pruner.compress()
        pruner.unwrap_model()
        small = speedup(model, masks, data.train_inputs[:2])
        parameters = sum(p.numel() for p in small.parameters())
        percent = accuracy(small, data.test_inputs, data.test_labels)
        print(f"{name:20} {parameters:9,} parameters {percent:6.2f} %")


if __name__ == "__main__":
    main()
