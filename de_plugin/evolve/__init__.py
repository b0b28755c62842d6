"""How evolution searches: ask, tell and staged selection, whatever the genomes stand for."""

from de_plugin.evolve.search import Search
from de_plugin.evolve.staged import Halving, halve

__all__ = ["Halving", "Search", "halve"]
