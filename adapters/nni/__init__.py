"""Directed Evolution inside NNI: a tuner for its experiments, and its speed-up on a current torch."""

from de_plugin.adapters.nni.speedup import speedup
from de_plugin.adapters.nni.tuner import DETuner

__all__ = ["DETuner", "speedup"]
