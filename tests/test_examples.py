"""The smallest scripts run as users run them, and Directed Evolution keeps more than what it replaces."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from de_plugin.assess.problem import Problem
from de_plugin.zoo import minilm
from tests.zoo.shared_data import published_weights
from tests.zoo.test_darknet import SMALL

EXAMPLES = Path(__file__).parents[1] / "examples"


def told(
    script: str,
    host: str = "",
    extra: str = "",
    ranks: int = 0,
    options: Sequence[object] = (),
    longest: int = 40,
) -> list[str]:
    """Run a script as a user would and return its lines; skip the test where its host is not installed."""
    if host and importlib.util.find_spec(host) is None:
        pytest.skip(
            f"{script} is about {host}, an optional package that the engine does without; `make test` "
            f"installs it, elsewhere: pip install 'de_plugin[{extra}]'"
        )
    path = EXAMPLES / script
    assert len(path.read_text().splitlines()) < longest
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    )
    command = [sys.executable, *launcher, str(path), *(str(option) for option in options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def numbers(line: str) -> list[str]:
    """Return the numbers behind the name that a line begins with."""
    return re.findall(r"[\d,]+\.?\d*", line[20:])


@pytest.mark.real_data
def test_a_tuned_file_is_a_third_of_the_hosts_within_the_same_tolerance() -> None:
    rows = told("neural_compressor_autotune.py", "neural_compressor", "neural-compressor")[-2:]
    (theirs, other), (size, ours) = [
        (int(a.replace(",", "")), float(b)) for a, b in (numbers(x) for x in rows)
    ]
    assert size < theirs / 3
    assert ours > other - 1.0


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("script", "host", "extra"),
    [("torch_pruning_drop_in.py", "torch_pruning", "torch-pruning"), ("nni_drop_in.py", "nni", "nni")],
)
def test_one_swapped_line_keeps_more_accuracy_at_the_same_size(script: str, host: str, extra: str) -> None:
    (*sizes, other), (*same, ours) = (numbers(line) for line in told(script, host, extra))
    assert sizes == same
    assert float(ours) > float(other) + 5


@pytest.mark.real_data
def test_a_network_becomes_a_file_of_a_fortieth_and_is_read_again() -> None:
    (size, dense), (small, percent) = (numbers(line) for line in told("quickstart.py"))
    assert int(small.replace(",", "")) < int(size.replace(",", "")) / 40
    assert float(percent) > float(dense) - 8


@pytest.mark.real_data
def test_evolution_keeps_more_than_criteria_alone_and_so_does_a_nest_with_it() -> None:
    lines = {line[:20].strip(): [float(x) for x in numbers(line)] for line in told("hybrid_criteria.py")}
    alone = [lines[name] for name in ("magnitude", "fisher", "half of each")]
    for name in ("evolution", "magnitude, evolution"):
        divergence, percent = lines[name]
        assert divergence < min(other for other, _ in alone)
        assert percent > max(other for _, other in alone) + 5


@pytest.mark.real_data
def test_two_processes_choose_what_one_chooses() -> None:
    assert told("distributed.py", ranks=2) == told("distributed.py")


@pytest.fixture
def encoder() -> None:
    """Skips where the weights of MiniLM are not to be had, and puts them into the cache where they are."""
    published_weights("MiniLM", minilm)


@pytest.mark.real_data
@pytest.mark.usefixtures("encoder")
def test_evolution_and_recovery_keep_what_a_sentence_means() -> None:
    options = ("--sentences", 16, "--sparsity", 0.6, "--evaluations", 16)
    rows = [line.split() for line in told("minilm.py", options=options, longest=100)]
    assert all(row[0] == "60%" for row in rows)
    kept = {" ".join(row[1 : row.index("agreement")]): float(row[row.index("agreement") + 1]) for row in rows}
    assert list(kept) == [
        "magnitude",
        "magnitude by layer",
        "wanda",
        "wanda + reconstruct",
        "de",
        "de + reconstruct",
    ]
    assert kept["de"] > kept["magnitude"]
    assert min(kept["wanda + reconstruct"], kept["de + reconstruct"]) > kept["wanda"]


@pytest.mark.real_data
@pytest.mark.usefixtures("encoder")
def test_a_host_quantizes_sentence_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    options = ("--host", "neural-compressor", "--networks", "minilm", "--methods", "rtn 4", "rtn 2")
    more = ("--samples", 8, "--threads", 1, "--json", path)
    told("benchmarks/dropin.py", "neural_compressor", "neural-compressor", 0, (*options, *more), 200)
    document = json.loads(path.read_text())
    assert document["intact"]["minilm sentences"]["accuracy"] == pytest.approx(100)
    fine, coarse = document["rows"]
    assert (fine["data"], fine["mean_bits"], coarse["mean_bits"]) == ("sentences", 4.5, 2.5)
    assert fine["bytes"] < document["intact"]["minilm sentences"]["params"] * 4
    assert fine["accuracy"] > 95 > coarse["accuracy"]
    assert fine["loss"] == pytest.approx(1 - fine["accuracy"] / 100)


def test_wanda_by_row_takes_the_same_share_of_every_row() -> None:
    spec = importlib.util.spec_from_file_location("minilm_example", EXAMPLES / "minilm.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["minilm_example"] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 6)
    inputs = torch.randn(50, 8) * torch.arange(1, 9)
    problem = Problem(torch.nn.Sequential(layer).eval(), inputs, divergence="mse", holdout=0)
    scores = module.WandaByRow()(problem, problem.eligible, 24)
    kept = problem.select(scores, problem.eligible, 24).reshape(6, 8)
    wanted = layer.weight.detach().abs() * inputs.square().mean(0).sqrt()
    assert torch.equal(kept, wanted >= wanted.sort(1).values[:, 4:5])


def test_a_detector_is_pruned_and_asked_what_it_still_sees(tmp_path: Path) -> None:
    (tmp_path / "net.cfg").write_text(SMALL)
    draw = np.random.default_rng(0)
    for folder, count in (("calibration", 12), ("others", 3)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            pixels = draw.integers(0, 256, (40, 48, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    files = ("--cfg", tmp_path / "net.cfg", "--images", tmp_path / "calibration")
    more = ("--eval-images", tmp_path / "others", "--sparsity", 0.5, "--generations", 1)
    lines = told("detector.py", options=(*files, *more), longest=100)
    assert [line.split()[:2] for line in lines] == [["magnitude", "50%"], ["evolution", "50%"]]
    divergences = [float(line.split()[3]) for line in lines]
    assert 0 < divergences[1] <= divergences[0]
