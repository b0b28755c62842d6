"""Comparisons: Directed Evolution beside every built-in method of torch and of the installed hosts."""

from de_plugin.compare.case import Case, Host, Method, Pruned
from de_plugin.compare.comparison import Comparison
from de_plugin.compare.row import Row
from de_plugin.compare.run import compare
from de_plugin.compare.runner import Step
from de_plugin.compare.settings import Settings

__all__ = ["Case", "Comparison", "Host", "Method", "Pruned", "Row", "Settings", "Step", "compare"]
