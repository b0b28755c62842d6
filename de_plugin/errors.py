"""What can go wrong, said so that the reader knows the argument, the value and the remedy."""

from __future__ import annotations


class DEError(Exception):
    """Base of every error that de_plugin raises on purpose."""


class ArgumentError(DEError, ValueError):
    """An argument has a value that cannot work."""


class SelectionError(DEError, ValueError):
    """Nothing can be pruned, or a name pattern or a layer type matches nothing."""


class TargetError(DEError, ValueError):
    """The sparsity asked for cannot be reached with the units that may be zeroed."""


class DataError(DEError, ValueError):
    """Calibration data or a data set is empty, malformed or not to be found."""


class OutputError(DEError, ValueError):
    """The model's outputs are not finite, or student and teacher do not match in shape."""


class ModeError(DEError, RuntimeError):
    """The model is in a mode in which its outputs are not a function of its inputs."""


class StructureError(DEError, RuntimeError):
    """The model's forward cannot be followed, or channels cannot be taken out of it."""


class GradientError(DEError, RuntimeError):
    """A criterion needs a gradient and the divergence or the model has none."""


class RankError(DEError, RuntimeError):
    """A process of a distributed search has died or cannot be reached."""


class CheckpointError(DEError, ValueError):
    """A checkpoint is damaged, or was written by another search."""


class FileError(DEError, ValueError):
    """A compressed network's file cannot be read or written, is damaged, or is another network's."""


class MissingDependencyError(DEError, ImportError):
    """An optional package is needed; the message holds the command that installs it."""


class DEWarning(UserWarning):
    """Something was done another way than asked; the message says what and why."""
