"""What `dropin.py` says of the search is what its hosts are given; what would have no effect is refused."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from de_plugin import KL, DirectedEvolution
from tests.scripts import benchmark

SEARCH = DirectedEvolution.brief(samples=32)


class AskedError(Exception):
    """Tells what a pruner was given."""


def asked(*given: Any, **options: Any) -> None:
    raise AskedError(options.get("criterion", given[-1]))


def case(networks: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(48, 8)
    labels = torch.zeros(48, dtype=torch.long)
    return networks.Case(
        name="small",
        data="none",
        model=model,
        inputs=x,
        labels=labels,
        test_inputs=x,
        test_labels=labels,
        right=lambda outputs: outputs.argmax(1) == labels,
        divergence=KL(),
        losses=lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"),
        ignored=("2",),
        masked=("0",),
    )


@pytest.mark.parametrize(
    ("host", "method", "pruner"),
    [
        ("dropin_nni", "de", "DEPruner"),
        ("dropin_nni", "de (weights)", "DEPruner"),
        ("dropin_torch_pruning", "de", "DEPruner"),
        ("dropin_torch_pruning", "de importance", "DEImportance"),
    ],
)
def test_hosts_are_given_the_search_that_the_file_names(
    host: str, method: str, pruner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmark(host)
    small = replace(case(benchmark("dropin_networks")), search=SEARCH)
    monkeypatch.setattr(module, pruner, asked)
    with pytest.raises(AskedError) as found:
        module.row(small, method, 0.5, 1, 0)
    assert found.value.args == (SEARCH,)


@pytest.mark.parametrize(
    ("host", "samples", "search", "message"),
    [
        ("nni", None, 64, "--search-samples 64: expected 2 or more, and as many --samples"),
        ("nni", 100, 101, "--search-samples 101"),
        ("torch-pruning", 100, 1, "--search-samples 1"),
        ("neural-compressor", 100, 64, "neural-compressor searches for levels on all samples"),
    ],
)
def test_a_search_that_cannot_be_is_refused(
    host: str, samples: int | None, search: int, message: str
) -> None:
    dropin = benchmark("dropin")
    with pytest.raises(SystemExit, match=message):
        dropin._search(argparse.Namespace(host=host, samples=samples, search_samples=search))


def test_the_search_is_as_large_as_asked() -> None:
    dropin = benchmark("dropin")
    options = argparse.Namespace(host="nni", samples=100, search_samples=None)
    assert dropin._search(options) == DirectedEvolution.brief()
    options.search_samples = 64
    assert dropin._search(options) == DirectedEvolution.brief(64)
