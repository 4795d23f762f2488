"""scikit-learn's estimator: :class:`MDNRegressor`, and scorers for its densities.

| module | what it holds |
|---|---|
| ``regressor`` | the estimator: parameters, training |
| ``predictions`` | its predictions, and the batches that they are computed in |
| ``answers`` | the compiled functions of a density |
| ``scorers`` | proper scores as scikit-learn takes them |
| ``probabilistic`` | skpro's regressor and distribution (import it by its name; needs skpro) |

Needs scikit-learn (``pip install 'jaxmdn[tables]'``).
"""

from jaxmdn.estimator.predictions import AtQuantile
from jaxmdn.estimator.regressor import MDNRegressor
from jaxmdn.estimator.scorers import neg_crps, neg_log_score

__all__ = ["AtQuantile", "MDNRegressor", "neg_crps", "neg_log_score"]
