"""Questions one asks of a mixture once it is there.

| module | questions |
|---|---|
| ``distribution`` | probabilities below, above: ``cdf``, ``survival`` and their logarithms |
| ``quantiles`` | the inverse: ``quantile`` |
"""

from jaxmdn.inference.distribution import cdf, log_cdf, log_survival, survival
from jaxmdn.inference.quantiles import quantile

__all__ = ["cdf", "log_cdf", "log_survival", "quantile", "survival"]
