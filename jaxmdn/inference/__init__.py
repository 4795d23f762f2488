"""Questions one asks of a mixture once it is there.

| module | questions |
|---|---|
| ``distribution`` | probabilities below, above: ``cdf``, ``survival`` and their logarithms |
| ``quantiles`` | the inverse: ``quantile`` |
| ``transforms`` | some of the dimensions, or the others once some are known |
"""

from jaxmdn.inference.distribution import cdf, log_cdf, log_survival, survival
from jaxmdn.inference.quantiles import quantile
from jaxmdn.inference.transforms import condition, marginal

__all__ = [
    "cdf",
    "condition",
    "log_cdf",
    "log_survival",
    "marginal",
    "quantile",
    "survival",
]
