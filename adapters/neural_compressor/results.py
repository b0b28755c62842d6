"""What a search ends with: a model, a config of the host that makes it again, and advice."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from torch import nn

from de_plugin.adapters.neural_compressor.config import DEQuantConfig
from de_plugin.adapters.neural_compressor.saving import save
from de_plugin.adapters.neural_compressor.settings import SHARED, Choice, Settings
from de_plugin.adapters.neural_compressor.trials import Trial
from de_plugin.encode import Info
from de_plugin.errors import ArgumentError


@dataclass(frozen=True)
class Tuned:
    """The result of a search.

    Attributes:
        model: a copy of the original with the levels of `trial`.
        config: gives the original the same levels: ``quantize(model, config)``.
        trial: the cheapest within tolerance; where there is none, the one of least loss.
        trials: all of them, in order.
        baseline: the original's score.
        advice: what to try next, in words.
    """

    model: nn.Module = field(repr=False)
    config: DEQuantConfig = field(repr=False)
    trial: Trial
    trials: tuple[Trial, ...] = field(repr=False)
    baseline: float
    advice: str

    @property
    def ok(self) -> bool:
        """Whether it is within tolerance."""
        return self.trial.ok

    def save(self, path: str | os.PathLike[str]) -> Info:
        """Write the model to a small file, see `save`."""
        return save(self.model, path)


def config_of(choices: Mapping[str, Choice], settings: Settings) -> DEQuantConfig:
    """Return a config of the host that gives layers these levels, and the others none."""
    shared = {name: getattr(settings, name) for name in SHARED}
    config = DEQuantConfig(**shared, white_list=None)
    for name, choice in choices.items():
        local = DEQuantConfig(**asdict(choice), **shared)
        config.set_local(name, local)
    return config


def advice(trial: Trial, trials: Sequence[Trial], most: int, batches: bool) -> str:
    """Return what to try next.

    Args:
        trial: the winner.
        trials: all.
        most: as many as there may be.
        batches: whether there are any.
    """
    more = "more bits or" if batches else "give batches, or"
    if trial.error is not None:
        return f"every trial failed, the first with {trials[0].error}"
    if not trial.ok and len(trials) >= most:
        return (
            "max_trials ended the search before a trial was within tolerance; allow more trials, or more loss"
        )
    if not trial.ok:
        return f"no trial is within tolerance: allow more loss, {more} a recovery such as 'levels'"
    if len(trials) >= most:
        return "max_trials ended the search; more trials may find a cheaper configuration"
    return ""


def allowed_by(configs: DEQuantConfig | Sequence[DEQuantConfig] | None) -> list[DEQuantConfig]:
    """Return the configs of a search; 2 to 8 bits where there is none.

    Raises:
        ArgumentError: they are no configs.
    """
    if configs is None:
        return [DEQuantConfig.get_config_set_for_tuning()]
    found = [configs] if isinstance(configs, DEQuantConfig) else list(configs)
    if not found or not all(isinstance(config, DEQuantConfig) for config in found):
        raise ArgumentError(
            f"configs={configs!r}: expected DEQuantConfig(bits=[2, 3, 4], ...), or a list of such"
        )
    return found
