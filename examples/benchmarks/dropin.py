"""Directed Evolution against every built-in method of a host, without fine-tuning.

Hosts that prune: each layer loses the same share of its channels, in one step or several, so that all
methods leave the same MACs. Samples for the choice are training data; accuracy and divergence are on test
data, looked at once a row, at its end. The host that quantizes: at less damage. A method that fails
leaves a row with its error. Rows that the file has already are not measured again, but for those with an
error. See `dropin_networks.py` for what is measured, and `dropin_torch_pruning.py`, `dropin_nni.py` and
`dropin_neural_compressor.py` for the methods.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from dropin_networks import NETWORKS, OTHERS, QUANTIZED, SAMPLES, Case, case, size
from rows import opened, versions, write

from de_plugin import DirectedEvolution
from de_plugin.zoo import DATA

HOSTS = {
    "torch-pruning": "dropin_torch_pruning",
    "nni": "dropin_nni",
    "neural-compressor": "dropin_neural_compressor",
}
QUANTIZING = ("neural-compressor",)
"""Hosts without ratios and steps."""
KEY = ("network", "data", "ratio", "steps", "method", "seed", "samples")
"""What tells one row from another."""


def main() -> None:
    """Measure every cell that is missing and write it."""
    options = _parsed()
    torch.set_num_threads(options.threads)
    host: Any = importlib.import_module(HOSTS[options.host])
    methods = options.methods or host.METHODS
    if unknown := sorted(set(methods) - set(host.METHODS)):
        raise SystemExit(f"--methods {unknown}: expected some of {list(host.METHODS)}")
    never = sorted({*QUANTIZED} & {*(options.networks or ())})
    if never and options.host not in QUANTIZING:
        raise SystemExit(
            f"--networks {never}: {options.host} cannot prune them; give --host {' or '.join(QUANTIZING)}"
        )
    search = _search(options)
    document = _opened(options, host, search)
    rows: list[dict[str, Any]] = document["rows"]
    for network, data, seed in _cases(options):
        found: Case | None = None
        for ratio, steps in _cells(options):
            for method in methods:
                samples = options.samples or SAMPLES[network]
                values = (network, data, ratio, steps, method, seed, samples)
                key = {k: v for k, v in zip(KEY, values, strict=True) if v is not None}
                old = [r for r in rows if all(r.get(k) == key.get(k) for k in KEY)]
                if any("error" not in r for r in old):
                    continue
                if found is None:
                    found = dataclasses.replace(case(network, data, samples, seed), search=search)
                    intact = {**size(found.model, found.inputs), **found.measured(found.model)}
                    document["intact"][f"{network} {data}"] = intact
                rows[:] = [r for r in rows if r not in old]
                rows.append({**key, **_measured(host, found, method, ratio, steps, seed)})
                print(rows[-1], flush=True)
                write(options.json, document)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", choices=list(HOSTS), default="torch-pruning")
    parser.add_argument("--json", type=Path, required=True, help="read where it exists, and written")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help="lenet5, resnet and vit")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=["mnist"], help="for images")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.25, 0.5, 0.75])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--methods", nargs="+", help="all of the host's where none is given")
    parser.add_argument(
        "--samples", type=int, help="2,000 images, 256 frames or 64 sentences where not given"
    )
    parser.add_argument(
        "--search-samples", type=int, help="that DE measures a candidate on, no more than --samples"
    )
    parser.add_argument("--search-rounds", type=int, help="of exchanges that DE may make; 6 where not given")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _cases(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    usual = ["lenet300"] if options.host in QUANTIZING else []
    for network in options.networks or [*usual, "lenet5", "resnet", "vit"]:
        sets = [OTHERS[network]] if network in OTHERS else options.data
        yield from itertools.product([network], sets, options.seeds)


def _cells(options: argparse.Namespace) -> Iterator[tuple[float | None, int | None]]:
    if options.host in QUANTIZING:
        yield None, None
    else:
        yield from itertools.product(options.ratios, options.steps)


def _search(options: argparse.Namespace) -> DirectedEvolution:
    """Return what Directed Evolution prunes by.

    Raises:
        SystemExit: it would not be what was asked for.
    """
    samples, rounds, given = options.search_samples, options.search_rounds, options.samples or 0
    asked = {k: v for k, v in (("samples", samples), ("rounds", rounds)) if v is not None}
    for name, value in asked.items():
        if options.host in QUANTIZING:
            raise SystemExit(f"--search-{name} {value}: {options.host} searches for levels; leave it out")
    if samples is not None and not 2 <= samples <= given:
        raise SystemExit(f"--search-samples {samples}: expected 2 or more, and at least as many --samples")
    if rounds is not None and rounds < 1:
        raise SystemExit(f"--search-rounds {rounds}: expected 1 or more")
    return DirectedEvolution.brief(**asked)


def _opened(options: argparse.Namespace, host: Any, search: DirectedEvolution) -> dict[str, Any]:
    """Return what the file holds, or a new document.

    Raises:
        SystemExit: the file belongs to another host, other versions or another criterion.
    """
    fresh = {
        "host": options.host,
        "versions": versions(host.VERSIONS),
        "criterion": getattr(host, "CRITERION", repr(search)),
        "intact": {},
        "rows": [],
    }
    document: dict[str, Any] = opened(options.json, fresh, ("host", "versions", "criterion"))
    return document


def _measured(
    host: Any, found: Case, method: str, ratio: float | None, steps: int | None, seed: int
) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row: dict[str, Any] = host.row(found, method, ratio, steps, seed)
    except (Exception, SystemExit) as error:  # a host's method may raise anything; the others shall run
        return {"error": f"{type(error).__name__}: {error}"}
    return row


if __name__ == "__main__":
    main()
