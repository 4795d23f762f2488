"""Questions one asks of a mixture once it is there.

| module | questions |
|---|---|
| ``distribution`` | probabilities below, above: ``cdf``, ``survival`` and their logarithms |
| ``quantiles`` | the inverse: ``quantile`` |
| ``modes`` | the most likely values: ``modes`` |
| ``regions`` | the smallest sets of a given probability |
| ``information`` | entropy and divergence: bounds and estimates |
| ``diagnostics`` | how many components are in use |
| ``transforms`` | some of the dimensions, the others once some are known, linear maps |
| ``algebra`` | products of densities; temperatures |
| ``cells`` | the probability of what was rounded to a grid |
| ``widening`` | larger scales, noise on the target |
"""

from jaxmdn.inference.algebra import Product, product, temper
from jaxmdn.inference.cells import cell_log_prob
from jaxmdn.inference.diagnostics import effective_num_components, is_dead
from jaxmdn.inference.distribution import cdf, log_cdf, log_survival, survival
from jaxmdn.inference.information import entropy_bounds, kl_divergence, kl_upper_bound
from jaxmdn.inference.modes import modes
from jaxmdn.inference.quantiles import quantile
from jaxmdn.inference.regions import hdr_intervals, hdr_level, hdr_threshold
from jaxmdn.inference.transforms import affine, condition, marginal
from jaxmdn.inference.widening import widen

__all__ = [
    "Product",
    "affine",
    "cdf",
    "cell_log_prob",
    "condition",
    "effective_num_components",
    "entropy_bounds",
    "hdr_intervals",
    "hdr_level",
    "hdr_threshold",
    "is_dead",
    "kl_divergence",
    "kl_upper_bound",
    "log_cdf",
    "log_survival",
    "marginal",
    "modes",
    "product",
    "quantile",
    "survival",
    "temper",
    "widen",
]
