"""How much memory this process takes; Linux tells, other systems do not."""

from __future__ import annotations

from pathlib import Path

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
KNOWN = _STATUS.exists() and _FORGET.exists()
"""Whether the system tells; the functions below raise OSError where it does not."""


def resident() -> int:
    """Return the bytes in memory now."""
    return _told("VmRSS")


def peak() -> int:
    """Return the most bytes since `forget_peak`; getrusage counts the parent's as well."""
    return _told("VmHWM")


def forget_peak() -> None:
    """Begin anew: the peak is what is in memory now."""
    _FORGET.write_text("5")


def _told(name: str) -> int:
    return 1024 * int(_STATUS.read_text().split(f"{name}:")[1].split()[0])
