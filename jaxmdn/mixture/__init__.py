"""Mixing: what follows from ``p(y) = sum_k w_k p_k(y)``, whatever the component family.

| module | what it holds |
|---|---|
| ``mixture`` | ``Mixture``, its log-density, moments, responsibilities |
| ``class_conditional`` | mixtures of mixtures: a class, and a target given the class |
| ``merging`` | several mixtures (an ensemble of networks) as one |
| ``sampling`` | draws, differentiable ones too |
| ``sequential`` | one dimension after another: conditionals, Rosenblatt's transform |
"""

from jaxmdn.mixture.class_conditional import (
    Labeled,
    class_log_prob,
    conditional_log_prob,
    flatten_mixture,
    joint_log_prob,
)
from jaxmdn.mixture.merging import merge, pool
from jaxmdn.mixture.mixture import (
    Mixture,
    check_target,
    component_log_prob,
    covariance,
    mean,
    require_mixture,
    responsibilities,
    variance,
)
from jaxmdn.mixture.sampling import NUM_SAMPLES, Draws, Estimate, sample

__all__ = [
    "NUM_SAMPLES",
    "Draws",
    "Estimate",
    "Labeled",
    "Mixture",
    "check_target",
    "class_log_prob",
    "component_log_prob",
    "conditional_log_prob",
    "covariance",
    "flatten_mixture",
    "joint_log_prob",
    "mean",
    "merge",
    "pool",
    "require_mixture",
    "responsibilities",
    "sample",
    "variance",
]
