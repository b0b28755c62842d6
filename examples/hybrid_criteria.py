"""Criteria are made of criteria: votes of two, and Directed Evolution alone and nested in magnitude."""

import torch

import de_plugin
from de_plugin import Criterion, DirectedEvolution, blend, nest
from de_plugin.zoo import accuracy, mnist, teacher

SAMPLES = 1000


def main() -> None:
    """Zero 95 % of the weights by each, and compare accuracy and what was measured."""
    data = mnist()
    torch.set_num_threads(1)  # enough for a network as small as this
    evolution = DirectedEvolution.brief()
    criteria: dict[str, str | Criterion] = {
        "magnitude": "magnitude",
        "fisher": "fisher",
        "half of each": blend({"magnitude": 0.5, "fisher": 0.5}),
        "evolution": evolution,
        "magnitude, evolution": nest("magnitude", evolution, widen=1.1),  # a tenth more proposed than goes
    }
    for name, criterion in criteria.items():
        model = teacher("mlpnet", data).eval()
        batches = data.train_inputs[:SAMPLES]
        report = de_plugin.prune(model, batches, 0.95, criterion, schedule=2)
        percent = accuracy(model, data.test_inputs, data.test_labels)
        print(f"{name:20} divergence {report.divergence:7.4f} {percent:6.2f} %")


if __name__ == "__main__":
    main()
