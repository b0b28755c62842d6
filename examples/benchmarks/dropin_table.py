"""Turn the rows of `dropin.py` into tables: a cell a line, what DE keeps or takes and what others do."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

OURS = ("de", "de (weights)")
WEIGHTS = ("de (weights)", "level")
"""Methods that zero single weights; all others take channels."""
NAMES = {
    "lenet5": "LeNet-5",
    "resnet": "ResNet",
    "vit": "ViT",
    "crepe": "CREPE",
    "lenet300": "LeNet-300",
    "minilm": "MiniLM",
}
TAKEN = {"mean_bits": ".2f", "bytes": ",", "divergence": ".2g", "loss": ".4f"}
"""What is small of a network with few levels, and how it is written."""
_SAME = 0.01
"""Rows whose multiplications differ by more are of another size and don't count."""

Row = dict[str, Any]


def cells(rows: list[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Return the rows that can be compared, in order, those with errors left out."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if "error" not in row:
            kind = "weights" if row["method"] in WEIGHTS else "channels"
            key = (row["network"], row["data"], row["ratio"], row["steps"], row["seed"], kind)
            found.setdefault(key, []).append(row)
    return found


def line(key: tuple[Any, ...], rows: list[Row]) -> str | None:
    """Return a line of the table; None where Directed Evolution or all others are missing."""
    ours = [row for row in rows if row["method"] in OURS]
    others = [
        row for row in rows if not row["method"].startswith("de") and ours and _comparable(row, ours[0])
    ]
    if not ours or not others:
        return None
    network, data, ratio, steps, seed, kind = key
    parts = [NAMES.get(network, network), *([data] if data not in ("mnist", "tones") else []), f"{ratio:.0%}"]
    parts += [] if kind == "channels" else ["weights"]
    parts += [f"{steps} step{'s' if steps > 1 else ''}", *([f"seed {seed}"] if seed else [])]
    shown = [_pair(ours[:1], others)]
    for corrected in (False, True):
        some = [row for row in others if ("(corrected)" in row["method"]) == corrected]
        shown.append(_pair(some, ours) if some else "")
    return f"| {', '.join(parts)} | {' | '.join(shown)} |"


def _comparable(row: Row, ours: Row) -> bool:
    known = row["macs"] and ours["macs"]
    return not known or abs(row["macs"] / ours["macs"] - 1) <= _SAME


def pairs(rows: list[Row]) -> list[str]:
    """Return a line for each built-in that quantizes and Directed Evolution beside it, but for errors."""
    kinds = ("network", "data", "seed", "samples", "method")
    found = {tuple(r[k] for k in kinds): r for r in rows if "error" not in r}
    result = []
    for (network, data, seed, samples, method), theirs in found.items():
        ours = found.get((network, data, seed, samples, f"{OURS[0]} at {method}"))
        if ours is None:
            continue
        parts = [NAMES.get(network, network), *([data] if data not in ("mnist", "sentences") else [])]
        parts += [method, *([f"seed {seed}"] if seed else [])]
        shown = [_both(theirs[k], ours[k], form) for k, form in TAKEN.items()]
        result.append(f"| {', '.join(parts)} | {' | '.join(shown)} |")
    return result


def _both(theirs: float, ours: float, form: str) -> str:
    """Return two numbers as they are written, the smaller one bold."""
    texts = [f"{x:{form}}" for x in (theirs, ours)]
    if texts[0] != texts[1]:
        less = int(ours < theirs)
        texts[less] = f"**{texts[less]}**"
    return " / ".join(texts)


def _pair(rows: list[Row], rivals: list[Row]) -> str:
    """Return the least divergence and the best accuracy, bold where no rival's is as good."""
    divergence, accuracy = min(r["divergence"] for r in rows), max(r["accuracy"] for r in rows)
    first = divergence < min(r["divergence"] for r in rivals)
    second = accuracy > max(r["accuracy"] for r in rivals)
    texts = (f"{divergence:.3g}", first), (f"{accuracy:.2f}", second)
    return " / ".join(f"**{text}**" if bold else text for text, bold in texts)


def main() -> None:
    """Print the table of one or more files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    documents = [json.loads(path.read_text())["rows"] for path in parser.parse_args().files]
    lines = [line for rows in documents for line in pairs(rows)]
    if lines:
        print("| network, built-in / DE | bits a weight | bytes | divergence | loss |\n" + 5 * "|---" + "|")
        print("\n".join(lines))
    found = [cells([r for r in rows if "ratio" in r]) for rows in documents]  # a host each
    if not any(found):
        return
    print("| network, share, steps | DE | best built-in of each column | best corrected |\n|---|---|---|---|")
    for key, some in (item for part in found for item in part.items()):
        text = line(key, some)
        if text:
            print(text)


if __name__ == "__main__":
    main()
