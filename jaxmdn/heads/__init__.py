"""Heads: static, hashable configuration that maps raw network outputs to a density."""

from jaxmdn.heads.base import Head, from_config, to_config
from jaxmdn.heads.categorical import CategoricalHead
from jaxmdn.heads.class_conditional import ClassConditionalHead
from jaxmdn.heads.factorized import FactorizedHead
from jaxmdn.heads.families import FAMILIES, Family
from jaxmdn.heads.independent import IndependentHead
from jaxmdn.heads.normal import COVARIANCES, NormalHead

__all__ = [
    "COVARIANCES",
    "FAMILIES",
    "CategoricalHead",
    "ClassConditionalHead",
    "FactorizedHead",
    "Family",
    "Head",
    "IndependentHead",
    "NormalHead",
    "from_config",
    "to_config",
]
