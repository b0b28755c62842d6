"""Turn the rows of `masks.py` into the README's table: mean and standard deviation over seeds."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path


def main() -> None:
    """Print a Markdown table of the rows in all files given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    rows = [r for f in parser.parse_args().files for r in json.loads(f.read_text())["rows"]]
    sparsities = sorted({r["sparsity"] for r in rows})
    methods = list(dict.fromkeys(r["method"] for r in rows))
    print("| method | " + " | ".join(f"{s:.0%}" for s in sparsities) + " |")
    print("|---" * (len(sparsities) + 1) + "|")
    for method in methods:
        cells = []
        for sparsity in sparsities:
            found = [r["accuracy"] for r in rows if r["method"] == method and r["sparsity"] == sparsity]
            if not found:
                cells.append("-")
            elif len(found) == 1:
                cells.append(f"{found[0]:.2f}")
            else:
                cells.append(f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f}")
        print(f"| {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
