"""Component families: one file each, none of which knows anything of mixing.

Those that a normal mixture does not need load on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxmdn.components.base import Density
from jaxmdn.components.categorical import Categorical
from jaxmdn.components.full_normal import FullNormal
from jaxmdn.components.independent import Independent
from jaxmdn.components.low_rank_normal import LowRankNormal
from jaxmdn.components.normal import Normal

if TYPE_CHECKING:
    from jaxmdn.components.asymmetric_laplace import AsymmetricLaplace
    from jaxmdn.components.bernoulli import Bernoulli
    from jaxmdn.components.beta import Beta
    from jaxmdn.components.discretized_logistic import DiscretizedLogistic
    from jaxmdn.components.gamma import Gamma
    from jaxmdn.components.hurdle import Hurdle
    from jaxmdn.components.laplace import Laplace
    from jaxmdn.components.log_normal import LogNormal
    from jaxmdn.components.logistic import Logistic
    from jaxmdn.components.logit_normal import LogitNormal
    from jaxmdn.components.negative_binomial import NegativeBinomial
    from jaxmdn.components.poisson import Poisson
    from jaxmdn.components.student_t import StudentT
    from jaxmdn.components.truncated_normal import TruncatedNormal
    from jaxmdn.components.von_mises import VonMises
    from jaxmdn.components.weibull import Weibull
    from jaxmdn.components.zero_inflated import ZeroInflated

_LAZY = {
    "AsymmetricLaplace": "jaxmdn.components.asymmetric_laplace",
    "Bernoulli": "jaxmdn.components.bernoulli",
    "Beta": "jaxmdn.components.beta",
    "DiscretizedLogistic": "jaxmdn.components.discretized_logistic",
    "Gamma": "jaxmdn.components.gamma",
    "Hurdle": "jaxmdn.components.hurdle",
    "Laplace": "jaxmdn.components.laplace",
    "LogNormal": "jaxmdn.components.log_normal",
    "Logistic": "jaxmdn.components.logistic",
    "LogitNormal": "jaxmdn.components.logit_normal",
    "NegativeBinomial": "jaxmdn.components.negative_binomial",
    "Poisson": "jaxmdn.components.poisson",
    "StudentT": "jaxmdn.components.student_t",
    "TruncatedNormal": "jaxmdn.components.truncated_normal",
    "VonMises": "jaxmdn.components.von_mises",
    "Weibull": "jaxmdn.components.weibull",
    "ZeroInflated": "jaxmdn.components.zero_inflated",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'jaxmdn.components' has no attribute {name!r}")


__all__ = [
    "AsymmetricLaplace",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Density",
    "DiscretizedLogistic",
    "FullNormal",
    "Gamma",
    "Hurdle",
    "Independent",
    "Laplace",
    "LogNormal",
    "Logistic",
    "LogitNormal",
    "LowRankNormal",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "StudentT",
    "TruncatedNormal",
    "VonMises",
    "Weibull",
    "ZeroInflated",
]
