"""Figures of an OUTPUT and its runs, from their own records."""

from __future__ import annotations

from vlmbatch.stats.figures import BY, Grouping, collect
from vlmbatch.stats.metrics import write_metrics
from vlmbatch.stats.period import parse_since

__all__ = ["BY", "Grouping", "collect", "parse_since", "write_metrics"]
