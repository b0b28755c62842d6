"""Which methods there are to compare: the engine's, torch's, and those of installed hosts."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points

from de_plugin.compare.case import Host, Method
from de_plugin.compare.own import engine, torch_own
from de_plugin.errors import ArgumentError, MissingDependencyError

GROUP = "de_plugin.compare"
"""Each entry point names a function that returns a `Host`; its name is the host's and the extra's."""


def known() -> tuple[str, ...]:
    """Return the names of all hosts that can be compared, installed or not, sorted."""
    return tuple(sorted(entry.name for entry in entry_points(group=GROUP)))


def found(hosts: Sequence[str] | None) -> tuple[list[Host], list[str]]:
    """Return the engine, torch and hosts, and what is to be said of those that cannot be had.

    Args:
        hosts: names; None means all that are installed.

    Raises:
        ArgumentError: there is no host of a name, or a host is named twice.
        MissingDependencyError: a host that was named is not installed.
    """
    if isinstance(hosts, str):
        raise ArgumentError(f"hosts={hosts!r}: expected a list of names, as in [{hosts!r}]")
    entries = {entry.name: entry for entry in entry_points(group=GROUP)}
    asked = sorted(entries) if hosts is None else list(hosts)
    for name in asked:
        if name not in entries or asked.count(name) > 1:
            wrong = "is named twice" if name in entries else "is none"
            raise ArgumentError(f"hosts: {name!r} {wrong}; there are {', '.join(sorted(entries)) or 'none'}")
    result, missing = [engine(), torch_own()], []
    for name in asked:
        try:
            result.append(_loaded(entries[name]))
        except Exception as error:  # importing a host may raise anything
            if hosts is not None:
                raise
            missing.append(f"{name}: left out, {type(error).__name__}: {error}")
    return result, missing


def _loaded(entry: EntryPoint) -> Host:
    try:
        host = entry.load()()
    except ImportError as error:
        if isinstance(error, MissingDependencyError):
            raise
        package = entry.dist.name if entry.dist is not None else "de_plugin"
        raise MissingDependencyError(
            f"hosts: {entry.name} needs {error.name or error}: pip install '{package}[{entry.name}]'"
        ) from error
    if not isinstance(host, Host):
        raise ArgumentError(f"hosts: {entry.value} returned {type(host).__name__}, expected a Host")
    return host


def chosen(
    hosts: Iterable[Host], tasks: Sequence[str], methods: Sequence[str | Method] | None
) -> list[Method]:
    """Return the methods for some tasks, in the order of hosts and of what each offers.

    Args:
        hosts: whose methods there are.
        tasks: "weights", "channels" or "bits".
        methods: names, globs, either also as ``host:name``, or methods of one's own; None means all.

    Raises:
        ArgumentError: a name stands for no method, or there is none at all.
    """
    if isinstance(methods, str):
        raise ArgumentError(f"methods={methods!r}: expected a list, as in [{methods!r}]")
    offered = [m for task in tasks for host in hosts for m in host.methods if m.task == task]
    if methods is not None:
        patterns = [m for m in methods if isinstance(m, str)]
        wanted = {m for p in patterns for m in _matching(p, offered)}
        offered = [m for m in offered if m in wanted]
        offered += [m for m in methods if isinstance(m, Method) and m.task in tasks]
    keys = [(m.task, m.host, m.name) for m in offered]
    if twice := [k for k in keys if keys.count(k) > 1]:
        raise ArgumentError(f"methods: {' '.join(twice[0])} is there twice; give one of them another name")
    if not offered:
        raise ArgumentError(
            f"methods: none of the hosts offers any for {', '.join(tasks)}; name another host"
        )
    return offered


def _matching(pattern: str, offered: Sequence[Method]) -> list[Method]:
    hits = [
        m
        for m in offered
        if pattern in (m.name, f"{m.host}:{m.name}")
        or fnmatch.fnmatchcase(m.name, pattern)
        or fnmatch.fnmatchcase(f"{m.host}:{m.name}", pattern)
    ]
    if not hits:
        names = ", ".join(f"{m.host}:{m.name}" for m in offered)
        raise ArgumentError(f"methods: {pattern!r} stands for none of {names}")
    return hits
