"""Proper scores: how good a predicted density was, once the target is known. Lower is better."""

from jaxmdn.scoring.crps import crps, quantile_crps
from jaxmdn.scoring.logarithmic import log_score
from jaxmdn.scoring.multivariate import energy_score, variogram_score
from jaxmdn.scoring.quantiles import interval_score, pinball_score

__all__ = [
    "crps",
    "energy_score",
    "interval_score",
    "log_score",
    "pinball_score",
    "quantile_crps",
    "variogram_score",
]
