"""k-means codebooks: the levels of least weighted squared error, exact up to a few thousand survivors."""

from __future__ import annotations

from dataclasses import dataclass

from de_plugin.quantize.codebook import register
from de_plugin.quantize.partition import partition
from de_plugin.quantize.scalar import Table
from de_plugin.quantize.survivors import Floats, condensed

_POINTS = 4096
"""Above it survivors are gathered in as many bins first."""


@register("kmeans")
@dataclass(frozen=True)
class KMeans(Table):
    """Cluster means of the survivors (Han et al., arXiv:1510.00149, sec. 3), zero apart.

    A global optimum of up to 4,096 survivors in a group, and of the bins of more of them.
    """

    @property
    def name(self) -> str:
        """Return "kmeans"."""
        return "kmeans"

    def _levels(self, values: Floats, importance: Floats) -> Floats:
        return partition(*condensed(values, importance, _POINTS), self.count - 1)
