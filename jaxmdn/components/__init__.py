"""Component families: one file each, none of which knows anything of mixing."""

from jaxmdn.components.asymmetric_laplace import AsymmetricLaplace
from jaxmdn.components.base import Density
from jaxmdn.components.bernoulli import Bernoulli
from jaxmdn.components.beta import Beta
from jaxmdn.components.categorical import Categorical
from jaxmdn.components.discretized_logistic import DiscretizedLogistic
from jaxmdn.components.full_normal import FullNormal
from jaxmdn.components.gamma import Gamma
from jaxmdn.components.hurdle import Hurdle
from jaxmdn.components.independent import Independent
from jaxmdn.components.laplace import Laplace
from jaxmdn.components.log_normal import LogNormal
from jaxmdn.components.logistic import Logistic
from jaxmdn.components.logit_normal import LogitNormal
from jaxmdn.components.low_rank_normal import LowRankNormal
from jaxmdn.components.negative_binomial import NegativeBinomial
from jaxmdn.components.normal import Normal
from jaxmdn.components.poisson import Poisson
from jaxmdn.components.student_t import StudentT
from jaxmdn.components.truncated_normal import TruncatedNormal
from jaxmdn.components.von_mises import VonMises
from jaxmdn.components.weibull import Weibull
from jaxmdn.components.zero_inflated import ZeroInflated

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
