"""The smallest scripts run as users run them, and Directed Evolution keeps more than what it replaces."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.real_data
def test_a_tuned_file_is_a_third_of_the_hosts_within_the_same_tolerance() -> None:
    if importlib.util.find_spec("neural_compressor") is None:
        pytest.skip(
            "the script is about neural_compressor, an optional package that the engine does without; `make "
            "test` installs it, elsewhere: pip install 'de_plugin[neural-compressor]'"
        )
    path = EXAMPLES / "neural_compressor_autotune.py"
    assert len(path.read_text().splitlines()) < 40
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [re.findall(r"[\d,]+\.?\d*", line[20:]) for line in done.stdout.splitlines()[-2:]]
    (theirs, other), (size, ours) = [(int(a.replace(",", "")), float(b)) for a, b in rows]
    assert size < theirs / 3
    assert ours > other - 1.0


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("script", "host", "extra"),
    [("torch_pruning_drop_in.py", "torch_pruning", "torch-pruning"), ("nni_drop_in.py", "nni", "nni")],
)
def test_one_swapped_line_keeps_more_accuracy_at_the_same_size(script: str, host: str, extra: str) -> None:
    if importlib.util.find_spec(host) is None:
        pytest.skip(
            f"{script} swaps a line of {host}, an optional package that the engine does without; `make test` "
            f"installs it, elsewhere: pip install 'de_plugin[{extra}]'"
        )
    path = EXAMPLES / script
    assert len(path.read_text().splitlines()) < 40
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [re.findall(r"[\d,]+\.?\d*", line[20:]) for line in done.stdout.splitlines()]  # behind the names
    (*sizes, other), (*same, ours) = rows
    assert sizes == same
    assert float(ours) > float(other) + 5
