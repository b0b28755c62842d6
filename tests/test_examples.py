"""The smallest scripts run as users run them, and Directed Evolution keeps more than what it replaces."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def told(script: str, host: str = "", extra: str = "", ranks: int = 0) -> list[str]:
    """Run a script as a user would and return its lines; skip the test where its host is not installed."""
    if host and importlib.util.find_spec(host) is None:
        pytest.skip(
            f"{script} is about {host}, an optional package that the engine does without; `make test` "
            f"installs it, elsewhere: pip install 'de_plugin[{extra}]'"
        )
    path = EXAMPLES / script
    assert len(path.read_text().splitlines()) < 40
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    )
    command = [sys.executable, *launcher, str(path)]
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
