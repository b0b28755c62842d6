"""Comparisons that nobody has measured, for tests of what is told about them."""

from __future__ import annotations

import math

from de_plugin.compare import Comparison, Row, Settings

METHODS = {
    ("weights", "de_plugin"): ("de", "nest(de, magnitude)", "magnitude", "fisher"),
    ("weights", "torch"): ("l1_unstructured", "random_unstructured"),
    ("channels", "de_plugin"): ("de", "magnitude"),
    ("channels", "torch-pruning"): ("de", "lamp", "taylor (corrected)"),
}
"""Names by task and host."""
BAD = '<script>alert("x")</script> & "quoted" | $a_b$'
"""What a host might write into an error."""


def settings(**changed: object) -> Settings:
    """Return settings, some of them changed."""
    values: dict[str, object] = {
        "task": ("weights", "channels"),
        "hosts": ("de_plugin", "torch", "torch-pruning"),
        "methods": (),
        "sparsities": (0.5, 0.9),
        "ratios": (0.5,),
        "bits": (4.0,),
        "seeds": (0, 1),
        "evaluations": 100,
        "seconds": None,
        "granularity": "weight",
        "include": (),
        "exclude": (),
        "keep": ("fc2",),
        "divergence": "KL()",
        "score": "test accuracy, %",
        "measured_on": "test data",
        "samples": 2000,
        "batch_size": 256,
        "model": "LeNet5 00000000",
        "data": "2000 samples 00000000",
        "test": "10000 samples 00000000",
        "threads": 1,
        **changed,
    }
    return Settings.from_dict(values)


def row(task: str, host: str, method: str, sparsity: float, seed: int, **changed: object) -> Row:
    """Return a row whose numbers follow from its names."""
    rank = len(method) % 7 + (0 if method == "de" else 3)
    values: dict[str, object] = {
        "task": task,
        "host": host,
        "method": method,
        "sparsity": sparsity,
        "seed": seed,
        "density": 1 - sparsity,
        "macs": 2e6 * (1 - sparsity),
        "params": 4e5 * (1 - sparsity),
        "divergence": 0.01 * math.exp(3 * sparsity) * (1 + rank) * (1 + 0.1 * seed),
        "score": 99 - 10 * sparsity**2 * rank - 0.3 * seed,
        "seconds": 0.1 + rank,
        "evaluations": 120 if "de" in method else 0,
        "layers": [[f"conv{n}.weight", sparsity * share] for n, share in ((1, 0.4), (2, 0.8), (3, 1.0))],
        "curve": [[n, 0.5 / n] for n in range(20, 120, 20)] if "de" in method else [],
        **changed,
    }
    return Row.from_dict(values)


def comparison(**changed: object) -> Comparison:
    """Return two tasks of two hosts each, two seeds, and one row that has failed."""
    asked = settings(**changed)
    rows = [
        row(task, host, method, amount, seed)
        for (task, host), methods in METHODS.items()
        for method in methods
        for amount in asked.amounts(task)
        for seed in asked.seeds
    ]
    rows.append(Row("channels", "torch-pruning", f"obdc {BAD}", 0.5, 0, error=f"TypeError: {BAD}"))
    return Comparison(
        tuple(rows),
        asked,
        {"python": "3.11.7", "torch": "2.13.0", "de_plugin": "0.1.0"},
        {"macs": 2e6, "params": 4e5, "score": 99.2},
        (f"torch-pruning: {BAD}",),
    )
