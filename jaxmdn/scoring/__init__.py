"""Proper scores: how good a predicted density was, once the target is known. Lower is better."""

from jaxmdn.scoring.crps import crps
from jaxmdn.scoring.logarithmic import log_score

__all__ = ["crps", "log_score"]
