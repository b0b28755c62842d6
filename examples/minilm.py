"""A sentence encoder of 22.6 million weights, its linear layers pruned by each method without labels.

The embeddings of sentences that no method has seen are compared with the intact network's: 1 is the same.
"reconstruct" solves each layer's least squares for the weights that stay, as SparseGPT does column by
column (arXiv:2301.00774). A search measures `--evaluations` candidates, and a few more.
"""

import argparse
import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import de_plugin
from de_plugin import Budget, DirectedEvolution, Swaps, criterion
from de_plugin.assess.problem import Problem
from de_plugin.types import Mask, Scores
from de_plugin.zoo import minilm, sentences, token_ids

LENGTH = 32  # word pieces of a sentence, at most
EVALUATION = 256  # sentences


@dataclass(frozen=True)
class WandaByRow:
    """Wanda as published (arXiv:2306.11695): each output's weights are compared with one another alone."""

    name: str = "wanda by row"
    needs_gradient: bool = False

    def __call__(self, problem: Problem, eligible: Mask, count: int) -> Scores:
        """Return each weight's rank in its row, up to 1."""
        scores = criterion("wanda")(problem, eligible, count)
        ranks = torch.empty_like(scores)
        for layer in problem.units.layers:
            order = scores[layer.start : layer.stop].reshape(layer.shape[0], -1).argsort(1)
            steps = torch.linspace(1 / order.shape[1], 1, order.shape[1]).expand(order.shape)
            ranks[layer.start : layer.stop] = torch.empty_like(steps).scatter_(1, order, steps).flatten()
        return ranks.masked_fill(~eligible, torch.inf)


def methods(evaluations: int) -> dict[str, dict[str, Any]]:
    """Return what `de_plugin.prune` is given for each row; "layer": all layers lose the same share."""
    search = DirectedEvolution(
        ("magnitude", "wanda", WandaByRow()),
        population=12,
        generations=100,  # as many as the budget allows
        exponent=0.1,
        offset=0.15,  # a rank in a row is a log-score that goes far where the share changes little
        temperature=0.02,
        swaps=Swaps(rounds=0),  # single weights are too many
    )
    evolution = {"criterion": search, "schedule": 1, "budget": Budget(evaluations)}
    return {
        "magnitude": {"criterion": "magnitude"},
        "magnitude by layer": {"criterion": "magnitude", "scope": "layer"},
        "wanda": {"criterion": WandaByRow(), "scope": "layer"},
        "wanda + reconstruct": {"criterion": WandaByRow(), "scope": "layer", "recovery": "reconstruct"},
        "de": evolution,
        "de + reconstruct": {**evolution, "recovery": "reconstruct"},
    }


def main() -> None:
    """Print a line for each sparsity and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=128, help="for the choice of what goes")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8])
    parser.add_argument("--evaluations", type=int, default=100, help="of each search")
    options = parser.parse_args()
    found = sentences().first(options.sentences, EVALUATION)
    batches, unseen = token_ids(found.calibration, LENGTH), token_ids(found.evaluation, LENGTH)
    original = minilm()
    with torch.no_grad():
        intact = original(unseen)
    for sparsity in options.sparsity:
        for name, given in methods(options.evaluations).items():
            model, started = copy.deepcopy(original), time.monotonic()
            de_plugin.prune(model, batches, sparsity, include=[nn.Linear], divergence="cosine", **given)
            seconds = time.monotonic() - started
            with torch.no_grad():
                agreement = float((model(unseen) * intact).sum(1).mean())
            print(f"{sparsity:4.0%} {name:20} agreement {agreement:.4f} {seconds:5.0f} s", flush=True)


if __name__ == "__main__":
    main()
