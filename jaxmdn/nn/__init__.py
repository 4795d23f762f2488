"""Flax NNX modules: a network whose output is a density.

``MDNHead`` is an output layer for any trunk: a linear map to raw outputs, then a head. ``MDN`` is a
trunk with such an output layer. ``AutoregressiveMDN`` is a network of its own: masks make it one of
all conditionals of a directed graph between the outputs. Each can be called for a density, or asked
for the loss directly with ``nll``, which lets a fused implementation skip the density.
"""

from jaxmdn.nn.autoregressive import AutoregressiveMDN
from jaxmdn.nn.conditionals import AutoregressiveDensity
from jaxmdn.nn.embedding import PeriodicEmbedding
from jaxmdn.nn.modules import MDN, MLP, MDNHead
from jaxmdn.nn.network import ACTIVATIONS, Network

__all__ = [
    "ACTIVATIONS",
    "MDN",
    "MLP",
    "AutoregressiveDensity",
    "AutoregressiveMDN",
    "MDNHead",
    "Network",
    "PeriodicEmbedding",
]
