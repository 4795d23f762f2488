"""Objectives: negative log-likelihoods, and the kernels that compute them in one pass.

| module | what it holds |
|---|---|
| ``likelihood`` | ``nll``, ``linear_nll``, ``categorical_nll``: arguments to rows |
| ``reductions`` | which rows count, and for how much |
| ``kernels`` | value and gradient in one pass over blocks of rows |
"""

from jaxmdn.losses.likelihood import categorical_nll, linear_nll, nll

__all__ = ["categorical_nll", "linear_nll", "nll"]
