"""Questions one asks of a mixture once it is there.

| module | questions |
|---|---|
| ``distribution`` | probabilities below, above: ``cdf``, ``survival`` and their logarithms |
| ``quantiles`` | the inverse: ``quantile`` |
| ``modes`` | the most likely values: ``mode`` |
| ``regions`` | the smallest sets of a given probability |
| ``information`` | entropy and divergence: bounds and estimates |
| ``diagnostics`` | how many components are in use |
| ``transforms`` | some of the dimensions, the others once some are known, linear maps |
| ``algebra`` | products of densities; temperatures |
"""

from jaxmdn.inference.algebra import Product, product, temper
from jaxmdn.inference.diagnostics import dead_components, effective_components
from jaxmdn.inference.distribution import cdf, log_cdf, log_survival, survival
from jaxmdn.inference.information import entropy_bounds, kl_divergence, kl_upper_bound
from jaxmdn.inference.modes import mode
from jaxmdn.inference.quantiles import quantile
from jaxmdn.inference.regions import hdr_intervals, hdr_level, hdr_threshold
from jaxmdn.inference.transforms import affine, condition, marginal

__all__ = [
    "Product",
    "affine",
    "cdf",
    "condition",
    "dead_components",
    "effective_components",
    "entropy_bounds",
    "hdr_intervals",
    "hdr_level",
    "hdr_threshold",
    "kl_divergence",
    "kl_upper_bound",
    "log_cdf",
    "log_survival",
    "marginal",
    "mode",
    "product",
    "quantile",
    "survival",
    "temper",
]
