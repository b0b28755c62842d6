"""Ctrl-C in any command: exit code 130, one line that says what is kept, and every file whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file

import de_plugin
from de_plugin import encode
from tests.commands import invoke

SOURCE = """
import os
import signal
from pathlib import Path

import torch

signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
calls = 0

class Net(torch.nn.Sequential):
    def forward(self, x):
        global calls
        calls += 1
        kept, least = os.environ.get("INTERRUPT", "nowhere 0").split()
        if Path(kept).exists() and calls >= int(least):
            os.environ["INTERRUPT"] = "nowhere 0"
            signal.raise_signal(signal.SIGINT)
        return super().forward(x)

def model():
    torch.manual_seed(0)
    return Net(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))

def data():
    return torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
"""


def called(
    folder: Path, command: str, *more: str, interrupt: str = "nowhere 0"
) -> subprocess.CompletedProcess[str]:
    """Run a command on the module above; it is stopped when a file exists, at a forward pass or later."""
    (folder / "subject.py").write_text(SOURCE)
    return subprocess.run(
        [
            *(sys.executable, "-m", "de_plugin", command, "--model", "subject:model"),
            *("--data", "subject:data", *more),
        ],
        cwd=folder,
        env={**os.environ, "INTERRUPT": interrupt, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} - {"subject.py", "__pycache__"}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("prune", "interrupted; nothing is kept, and net.safetensors is as it was; with --resume FOLDER"),
        ("compress", "interrupted; nothing is kept, and net.safetensors is as it was; with --resume FOLDER"),
    ],
)
def test_a_search_that_is_stopped_changes_no_file(command: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"old")
    done = called(
        tmp_path,
        *(command, "--output", "net.safetensors", "--save-config", "run.toml", "--json"),
        interrupt=". 4",
    )
    assert done.returncode == 130, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(said)
    assert files(tmp_path) == {"net.safetensors"}
    assert (tmp_path / "net.safetensors").read_bytes() == b"old"


def test_a_search_that_is_kept_goes_on_with_the_same_call(tmp_path: Path) -> None:
    options = ("--cycles", "3", "--sparsity", "0.7", "--evaluations", "400", "--output", "net", "--json")
    first = called(tmp_path, "prune", *options, "--resume", "kept", interrupt="kept/search.safetensors 1")
    assert first.returncode == 130, first.stderr
    assert first.stdout == ""
    assert first.stderr.splitlines() == [
        "interrupted; the work is kept in kept, and net is as it was: the same call goes on there"
    ]
    assert files(tmp_path) == {"kept"}
    second = called(tmp_path, "prune", *options, "--resume", "kept")
    assert second.returncode == 0, second.stderr
    resumed = load_file(tmp_path / "net")
    whole = called(tmp_path, "prune", *options)
    assert json.loads(second.stdout)["divergence"] == json.loads(whole.stdout)["divergence"]
    straight = load_file(tmp_path / "net")
    assert all(bool((resumed[name] == straight[name]).all()) for name in straight)


def stopped(*_args: Any, **_options: Any) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("place", "name", "arguments", "said"),
    [
        (encode, "load", ("load", "x.de", "--output", "dense"), "interrupted; dense is as it was"),
        (encode, "load", ("load", "x.de", "--json"), "interrupted; nothing is changed"),
        (encode, "to_dense", ("load", "x.de", "--output", "dense"), "interrupted; every file is whole"),
        (encode, "inspect", ("inspect", "x.de"), "interrupted; x.de is as it was"),
        (de_plugin, "describe", ("criteria",), "interrupted; every file is whole"),
    ],
)
def test_every_command_ends_with_a_line(
    place: Any,
    name: str,
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dense").write_bytes(b"old")
    encode.save(tmp_path / "x.de", {"weight": torch.ones(3)})
    monkeypatch.setattr(place, name, stopped)
    result = invoke(*arguments)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr == f"{said}\n"
    assert (tmp_path / "dense").read_bytes() == b"old"
    assert files(tmp_path) == {"dense", "x.de"}
