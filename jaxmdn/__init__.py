"""jaxmdn: mixture density networks in JAX, as pure functions.

    head    = jaxmdn.NormalHead(num_components=8, event_dim=2, covariance="full")
    raw     = network(x)                         # [..., head.num_outputs]
    mixture = head(raw)                          # a pytree of constrained parameters
    lp      = jaxmdn.log_prob(mixture, y)        # [...], nats

Importing the package loads JAX and NumPy alone. ``jaxmdn.nn`` (Flax), ``jaxmdn.train`` (Optax),
``jaxmdn.interop`` (distrax), ``jaxmdn.plots`` (matplotlib) and ``jaxmdn.checkpoint`` (orbax) load
on first use, so a broken release of one of them cannot break ``jaxmdn.log_prob``. So do questions
(``jaxmdn.inference``), scores and calibration, for the sake of the import's time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxmdn import (
    components,
    graph,
    heads,
    initializers,
    links,
    losses,
    mixture,
    numerics,
    pooling,
    sampling,
    sequential,
    structure,
)
from jaxmdn._version import __version__
from jaxmdn.heads import (
    CategoricalHead,
    ClassConditionalHead,
    FactorizedHead,
    Head,
    IndependentHead,
    NormalHead,
)
from jaxmdn.losses import categorical_nll, linear_nll, nll
from jaxmdn.mixture import (
    Mixture,
    component_log_prob,
    covariance,
    log_prob,
    mean,
    responsibilities,
    variance,
)
from jaxmdn.pooling import merge
from jaxmdn.sampling import sample
from jaxmdn.structure import (
    Labeled,
    class_log_prob,
    class_marginal,
    conditional_log_prob,
    joint_log_prob,
)

if TYPE_CHECKING:
    from jaxmdn import calibration as calibration
    from jaxmdn import checkpoint as checkpoint
    from jaxmdn import inference as inference
    from jaxmdn import interop as interop
    from jaxmdn import nn as nn
    from jaxmdn import plots as plots
    from jaxmdn import scoring as scoring
    from jaxmdn import train as train
    from jaxmdn.calibration import conformal_hdr, pit, rosenblatt
    from jaxmdn.calibration.coverage import coverage
    from jaxmdn.inference import (
        affine,
        cdf,
        condition,
        dead_components,
        effective_components,
        entropy_bounds,
        hdr_intervals,
        hdr_level,
        hdr_threshold,
        kl_divergence,
        kl_upper_bound,
        log_cdf,
        log_survival,
        marginal,
        mode,
        product,
        quantile,
        survival,
        temper,
    )
    from jaxmdn.interop import from_distrax, to_distrax
    from jaxmdn.scoring import energy_score, log_score
    from jaxmdn.scoring.crps import crps

# Modules that load on first use, with the names that are the package's own.
_LAZY_MODULES: dict[str, tuple[str, ...]] = {
    "calibration": ("conformal_hdr", "coverage", "pit", "rosenblatt"),
    "checkpoint": (),
    "inference": (
        *("affine", "cdf", "condition", "dead_components", "effective_components"),
        *("entropy_bounds", "hdr_intervals", "hdr_level", "hdr_threshold", "kl_divergence"),
        *("kl_upper_bound", "log_cdf", "log_survival", "marginal", "mode", "product", "quantile"),
        *("survival", "temper"),
    ),
    "interop": ("from_distrax", "to_distrax"),
    "nn": (),
    "plots": (),
    "scoring": ("crps", "energy_score", "log_score"),
    "train": (),
}
_LAZY_NAMES = {name: module for module, names in _LAZY_MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"jaxmdn.{name}")
    if name in _LAZY_NAMES:
        value = getattr(importlib.import_module(f"jaxmdn.{_LAZY_NAMES[name]}"), name)
        globals()[name] = value  # found at once from now on
        return value
    raise AttributeError(f"module 'jaxmdn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY_MODULES, *_LAZY_NAMES})


__all__ = [
    "CategoricalHead",
    "ClassConditionalHead",
    "FactorizedHead",
    "Head",
    "IndependentHead",
    "Labeled",
    "Mixture",
    "NormalHead",
    "__version__",
    "affine",
    "calibration",
    "categorical_nll",
    "cdf",
    "checkpoint",
    "class_log_prob",
    "class_marginal",
    "component_log_prob",
    "components",
    "condition",
    "conditional_log_prob",
    "conformal_hdr",
    "covariance",
    "coverage",
    "crps",
    "dead_components",
    "effective_components",
    "energy_score",
    "entropy_bounds",
    "from_distrax",
    "graph",
    "hdr_intervals",
    "hdr_level",
    "hdr_threshold",
    "heads",
    "inference",
    "initializers",
    "interop",
    "joint_log_prob",
    "kl_divergence",
    "kl_upper_bound",
    "linear_nll",
    "links",
    "log_cdf",
    "log_prob",
    "log_score",
    "log_survival",
    "losses",
    "marginal",
    "mean",
    "merge",
    "mixture",
    "mode",
    "nll",
    "nn",
    "numerics",
    "pit",
    "plots",
    "pooling",
    "product",
    "quantile",
    "responsibilities",
    "rosenblatt",
    "sample",
    "sampling",
    "scoring",
    "sequential",
    "structure",
    "survival",
    "temper",
    "to_distrax",
    "train",
    "variance",
]
