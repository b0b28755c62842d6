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
    ("host", "asked", "message"),
    [
        (
            "nni",
            {"search_samples": 64},
            "--search-samples 64: expected 2 or more, and at least as many --samples",
        ),
        ("nni", {"samples": 100, "search_samples": 101}, "--search-samples 101"),
        ("torch-pruning", {"samples": 100, "search_samples": 1}, "--search-samples 1"),
        (
            "neural-compressor",
            {"samples": 100, "search_samples": 64},
            "--search-samples 64: neural-compressor searches for levels; leave it out",
        ),
        ("nni", {"search_rounds": 0}, "--search-rounds 0: expected 1 or more"),
        (
            "neural-compressor",
            {"search_rounds": 9},
            "--search-rounds 9: neural-compressor searches for levels",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused(host: str, asked: dict[str, int], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        search(host=host, **asked)


def test_the_search_is_as_large_as_asked() -> None:
    assert search(samples=100) == DirectedEvolution.brief()
    assert search(samples=100, search_samples=64) == DirectedEvolution.brief(64)
    assert search(search_rounds=40) == DirectedEvolution.brief(rounds=40)


def search(**asked: Any) -> Any:
    usual = {"host": "nni", "samples": None, "search_samples": None, "search_rounds": None}
    return benchmark("dropin")._search(argparse.Namespace(**{**usual, **asked}))
