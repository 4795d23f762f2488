"""Heads: static, hashable configuration that maps raw network outputs to a density."""

from jaxmdn.heads.base import Head, from_config, to_config
from jaxmdn.heads.categorical import CategoricalHead
from jaxmdn.heads.class_conditional import ClassConditionalHead
from jaxmdn.heads.normal import COVARIANCES, NormalHead

__all__ = [
    "COVARIANCES",
    "CategoricalHead",
    "ClassConditionalHead",
    "Head",
    "NormalHead",
    "from_config",
    "to_config",
]
