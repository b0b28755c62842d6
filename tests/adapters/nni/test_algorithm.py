"""DETuner under its name in NNI: on the list and off again, by hand and by command, and in an experiment."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from de_plugin import cli
from de_plugin.adapters.nni.algorithm import NAME, register_tuner, unregister_tuner, write_meta
from de_plugin.adapters.nni.tuner import DETuner
from de_plugin.errors import ArgumentError

package_utils = pytest.importorskip("nni.tools.package_utils")

LOOPBACK = """
const net = require("net");
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (where, ...rest) {
  if (typeof where === "number" && typeof rest[0] !== "string") rest.unshift("127.0.0.1");
  return listen.call(this, where, ...rest);
};
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "config"
    monkeypatch.setenv("NNI_CONFIG_DIR", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return folder


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli._build(), ["nni", *arguments], catch_exceptions=False)


def test_registering_is_idempotent_and_reversible() -> None:
    before = package_utils.get_all_algo_meta()
    assert [register_tuner(), register_tuner()] == [True, False]
    assert package_utils.get_algo_meta(NAME) == package_utils.get_algo_meta("de")
    assert [unregister_tuner(), unregister_tuner()] == [True, False]
    assert package_utils.get_all_algo_meta() == before


def test_other_algorithms_stay() -> None:
    other = package_utils.AlgoMeta.load(
        {"algoType": "tuner", "builtinName": "Other", "className": "some.module.Other"}
    )
    package_utils.register_algo_meta(other)
    register_tuner()
    unregister_tuner()
    assert package_utils.get_algo_meta("Other") == other


@pytest.mark.parametrize("name", [NAME, "de"])
def test_a_name_that_is_taken_is_left_alone(name: str) -> None:
    other = package_utils.AlgoMeta.load(
        {"algoType": "tuner", "builtinName": name, "className": "some.module.Other"}
    )
    package_utils.register_algo_meta(other)
    with pytest.raises(ArgumentError, match="some.module.Other"):
        register_tuner()
    assert not unregister_tuner()
    assert package_utils.get_algo_meta(name) == other


@pytest.mark.parametrize("name", [NAME, "DE"])
def test_the_host_builds_it_by_name(name: str) -> None:
    register_tuner()
    made = package_utils.create_builtin_class_instance(
        name, {"seed": 3, "optimize_mode": "minimize"}, "tuners"
    )
    assert isinstance(made, DETuner)
    assert (made.seed, made.optimize_mode) == (3, "minimize")


def test_the_meta_file_registers_the_same(tmp_path: Path) -> None:
    management = pytest.importorskip("nni.tools.nnictl.algo_management")
    (meta,) = management.read_reg_meta_list(str(write_meta(tmp_path / "meta.yml")))
    register_tuner()
    assert meta == package_utils.get_algo_meta(NAME)
    with pytest.raises(ArgumentError, match="missing"):
        write_meta(tmp_path / "missing" / "meta.yml")


def test_commands_say_what_they_did(home: Path, tmp_path: Path) -> None:
    said = [invoke(c).stdout for c in ("register", "register", "unregister", "unregister")]
    assert all(str(home) in line for line in said)
    for line, word in zip(said, ("registered in", "already", "taken off", "not on the list"), strict=True):
        assert word in line
    assert invoke("meta", str(tmp_path / "m.yml")).exit_code == 0
    assert invoke("register", "--meta-file", str(tmp_path / "n.yml")).exit_code == 0
    assert (tmp_path / "n.yml").read_text() == (tmp_path / "m.yml").read_text()
    assert invoke("unregister").exit_code == 0
    assert json.loads((tmp_path / "m.yml").read_text())["builtinName"] == NAME


def test_commands_say_it_as_json(home: Path, tmp_path: Path) -> None:
    said = [
        json.loads(invoke(c, "--json").stdout) for c in ("register", "register", "unregister", "unregister")
    ]
    assert [x["changed"] for x in said] == [True, False, True, False]
    assert {(x["name"], x["alias"]) for x in said} == {(NAME, "DE")}
    assert all(x["file"].startswith(str(home)) for x in said)
    path = str(tmp_path / "m.yml")
    assert json.loads(invoke("meta", path, "--json").stdout) == {"file": path}


def test_ctrl_c_waits_until_the_list_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    known = package_utils.register_algo_meta

    def slow(new: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        known(new)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(package_utils, "register_algo_meta", slow)
        result = invoke("register")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert result.stderr == "interrupted; every file is whole\n"
    assert package_utils.get_algo_meta(NAME) is not None


def test_the_list_of_commands_names_it_and_imports_no_host() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom de_plugin import cli\n"
        "print(CliRunner().invoke(cli._build(), ['--help']).stdout)\n"
        "print('imported' if 'nni' in sys.modules else 'not imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "de-plugin nni --help" in done.stdout
    assert done.stdout.strip().endswith("not imported")


def test_without_the_host_the_command_names_the_extra() -> None:
    code = (
        "import sys\nsys.modules['nni'] = None\nsys.argv[1:] = ['nni', 'register']\n"
        "from de_plugin import cli\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "pip install 'de_plugin[nni]'" in done.stderr


def cannot_run() -> str:
    """Say why experiments cannot run here; empty where they can."""
    if sys.version_info >= (3, 12):
        return "NNI's experiments do not run on Python 3.12 and later"
    if importlib.util.find_spec("pkg_resources") is None:
        return "NNI's experiments need setuptools<81 (pkg_resources)"
    if importlib.util.find_spec("nni_node") is None:
        return "this build of NNI comes without its manager (nni_node)"
    return "NNI's manager is stopped by POSIX signals here" if os.name != "posix" else ""


def end(process: subprocess.Popen[str]) -> None:
    """End a process and whatever it has started."""
    psutil: Any = pytest.importorskip("psutil")
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.communicate()


@pytest.mark.skipif(bool(cannot_run()), reason=cannot_run() or "-")
def test_a_real_experiment_of_three_trials(tmp_path: Path) -> None:
    register_tuner()
    (tmp_path / "loopback.js").write_text(LOOPBACK)
    outside = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("experiment.py")), str(tmp_path)],
        env={**outside, "NODE_OPTIONS": f"--require {tmp_path / 'loopback.js'}", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = process.communicate(timeout=420)
    finally:
        end(process)
    assert process.returncode == 0, said
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["done"]
    assert len(result["trials"]) == 3
    alone = DETuner("maximize", seed=3)
    alone.update_search_space(result["space"])
    for number, trial in enumerate(result["trials"]):
        assert alone.generate_parameters(number) == trial["parameters"]
        alone.receive_trial_result(number, trial["parameters"], trial["value"])
