"""Integer labels of outputs that are classes: their cross-entropy, and which are none."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from de_plugin.assess.divergence import leaves, wide
from de_plugin.errors import DataError
from de_plugin.types import PyTree


def cross_entropy(outputs: PyTree, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the first output, classes second or last, to integer labels.

    Raises:
        DataError: the labels' shape fits neither layout, or a label is no class.
    """
    logits = wide(leaves(outputs)[0])
    if labels.shape == logits.shape[:-1]:
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())
    if labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise DataError(
            f"labels: {tuple(labels.shape)} for outputs {tuple(logits.shape)}; expected one integer for each "
            "position, classes being the outputs' second or last dimension"
        )
    return F.cross_entropy(logits, labels)


def check_labels(outputs: PyTree, labels: Tensor) -> None:
    """Refuse labels that are no classes of the first output; -100 is ignored, as in torch.

    Raises:
        DataError: a label is not in [0, classes).
    """
    logits = leaves(outputs)[0]
    last = labels.shape == logits.shape[:-1]
    classes = logits.shape[-1 if last else min(1, logits.dim() - 1)]
    real = labels[labels != -100]
    if labels.is_floating_point() or bool(((real < 0) | (real >= classes)).any()):
        raise DataError(
            f"labels: {labels.dtype} from {labels.min().item()} to {labels.max().item()}; expected integers "
            f"in [0, {classes}), the model's classes"
        )
