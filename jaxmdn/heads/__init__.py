"""Heads: static, hashable configuration that maps raw network outputs to a density.

| module | what it holds |
|---|---|
| ``normal``, ``categorical`` | one head a module |
| ``factorized``, ``families`` | a component family for every output, and what families declare |
| ``independent``, ``class_conditional`` | heads made of heads |
| ``links`` | an unconstrained number to a constrained parameter, and back |
| ``graph`` | which outputs depend on which |
| ``initializers``, ``units`` | a start from the data; locations and scales of the data's size |
"""

from jaxmdn.heads.base import Head, from_config, to_config
from jaxmdn.heads.categorical import CategoricalHead
from jaxmdn.heads.class_conditional import ClassConditionalHead
from jaxmdn.heads.factorized import FactorizedHead
from jaxmdn.heads.families import Family, family_names
from jaxmdn.heads.independent import IndependentHead
from jaxmdn.heads.normal import COVARIANCES, NormalHead
from jaxmdn.heads.units import in_units

from jaxmdn.heads import graph, initializers, links  # isort: skip

__all__ = [
    "COVARIANCES",
    "CategoricalHead",
    "ClassConditionalHead",
    "FactorizedHead",
    "Family",
    "Head",
    "IndependentHead",
    "NormalHead",
    "family_names",
    "from_config",
    "graph",
    "in_units",
    "initializers",
    "links",
    "to_config",
]
