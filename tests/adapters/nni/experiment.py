"""Run as a script: three trials of a registered DETuner; writes their parameters and values as JSON."""

import json
import socket
import sys
from pathlib import Path

from nni.experiment import Experiment

TRIAL = """
import nni
p = nni.get_next_parameter()
nni.report_final_result(p["ratio"] if p["criterion"] == "magnitude" else -p["ratio"])
"""

SPACE = {
    "ratio": {"_type": "uniform", "_value": [0.1, 0.9]},
    "criterion": {"_type": "choice", "_value": ["magnitude", "de"]},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(folder: Path) -> None:
    (folder / "trial.py").write_text(TRIAL)
    experiment = Experiment("local")
    experiment.config.experiment_working_directory = str(folder / "experiments")
    experiment.config.trial_code_directory = str(folder)
    experiment.config.trial_command = f"{sys.executable} trial.py"
    experiment.config.trial_concurrency = 1
    experiment.config.max_trial_number = 3
    experiment.config.max_experiment_duration = "300s"
    experiment.config.nni_manager_ip = "127.0.0.1"
    experiment.config.search_space = SPACE
    experiment.config.tuner.name = "DE"
    experiment.config.tuner.class_args = {"optimize_mode": "maximize", "seed": 3}
    try:
        done = experiment.run(free_port(), wait_completion=True)
        trials = [{"parameters": t.parameter, "value": t.value} for t in experiment.export_data()]
    finally:
        experiment.stop()
    (folder / "result.json").write_text(json.dumps({"done": done, "trials": trials, "space": SPACE}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
