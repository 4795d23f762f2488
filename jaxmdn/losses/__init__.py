"""Objectives: negative log-likelihoods, and the kernels that compute them in one pass.

| module | what it holds |
|---|---|
| ``likelihood`` | ``nll``, ``linear_nll``, ``categorical_nll``: arguments to rows |
| ``composed`` | ``log_prob`` of a mixture that a head made |
| ``objectives`` | others: beta-NLL, winner takes all, cells of a grid, penalties |
| ``natural`` | natural-gradient expectation maximisation |
| ``reductions`` | which rows count, and for how much |
| ``kernels`` | value and gradient in one pass over blocks of rows |
"""

from jaxmdn.losses.composed import log_prob
from jaxmdn.losses.likelihood import categorical_nll, linear_nll, nll
from jaxmdn.losses.natural import natural_em
from jaxmdn.losses.objectives import (
    beta_nll,
    cell_nll,
    dirichlet_penalty,
    entropy_penalty,
    scale_penalty,
    smoothed_nll,
    winner_takes_all,
)

__all__ = [
    "beta_nll",
    "categorical_nll",
    "cell_nll",
    "dirichlet_penalty",
    "entropy_penalty",
    "linear_nll",
    "log_prob",
    "natural_em",
    "nll",
    "scale_penalty",
    "smoothed_nll",
    "winner_takes_all",
]
