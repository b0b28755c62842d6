"""What a script prints must not depend on the order in which Python hashes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def printed_whatever_the_hashes(script: str) -> str:
    """Return what a script prints, after checking that other seeds of hashes change nothing of it."""
    found = []
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[1],
            check=False,
        )
        assert run.returncode == 0, run.stderr
        found.append(run.stdout)
    assert found[0] == found[1], "\n--\n".join(found)
    return found[0]
