"""skpro's regressor and distribution, over the same core as :class:`MDNRegressor`.

scikit-learn's checks forbid the ``predict_proba`` that skpro asks for, so that there are two
classes. Import this module by its name; it needs skpro (``pip install skpro``), of whose own
mixtures the energy, and so the CRPS, is wrong as of 2.16: N(0, 1) has 1.128, not 1.596.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from sklearn.base import clone
from skpro.distributions.base import BaseDistribution
from skpro.regression.base import BaseProbaRegressor

import jaxmdn
from jaxmdn.estimator.regressor import MDNRegressor
from jaxmdn.inference.quantiles import quantile_at
from jaxmdn.mixture import flatten_mixture
from jaxmdn.scoring.crps import mean_difference
from jaxmdn.typing import Array


class MixtureDistribution(BaseDistribution):
    """A jaxmdn density with rows and columns that have names.

    Args:
      density: a mixture of batch shape ``[N]`` over D outputs, or of one row and one output: then
        the distribution is a scalar.
      index, columns: names of the N rows and D columns; none for a scalar.

    Outputs of one row may depend on each other; ``pdf``, ``cdf`` and ``ppf`` are those of each by
    itself. Samples are joint.

    >>> import jax.numpy as jnp, jaxmdn
    >>> from jaxmdn.estimator.probabilistic import MixtureDistribution
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> distribution = MixtureDistribution(jaxmdn.Mixture(logits=jnp.zeros(1), components=normal))
    >>> round(float(distribution.energy()), 4)
    1.1284
    """

    _tags = {
        "capabilities:approx": ["pdfnorm"],
        "capabilities:exact": ["mean", "var", "energy", "pdf", "log_pdf", "cdf", "ppf"],
        "distr:measuretype": "continuous",
        "distr:paramtype": "parametric",
        "broadcast_init": "off",
    }

    def __init__(self, density: Any, index: Any = None, columns: Any = None) -> None:
        self.density = density
        if index is None and density.batch_shape:
            index = pd.RangeIndex(density.batch_shape[0])
        if columns is None and density.batch_shape:
            columns = pd.RangeIndex(density.event_dim)
        super().__init__(index=index, columns=columns)

    def _iloc(self, rowidx: Any = None, colidx: Any = None) -> Any:
        if self.ndim == 0:
            return self
        if all(isinstance(place, (int, np.integer)) for place in (rowidx, colidx)):
            return self._iat(rowidx, colidx)
        rows = np.atleast_1d(np.arange(self.shape[0]) if rowidx is None else rowidx)
        places = np.atleast_1d(np.arange(self.shape[1]) if colidx is None else colidx)
        rows, places = np.arange(self.shape[0])[rows], np.arange(self.shape[1])[places]
        own = self.density
        if not np.array_equal(places, np.arange(self.shape[1])):
            own = jaxmdn.marginal(own, tuple(map(int, places)))
        if not np.array_equal(rows, np.arange(self.shape[0])):
            own = own[rows]
        return type(self)(own, index=self.index[rows], columns=self.columns[places])

    def _iat(self, rowidx: Any = None, colidx: Any = None) -> Any:
        if rowidx is None or colidx is None:
            raise ValueError("iat: pass a row and a column.")
        return type(self)(jaxmdn.marginal(self.density[int(rowidx)], (int(colidx),)))

    def _value(self, function: str, *arguments: Any) -> Any:
        """``[N, D]``; of a scalar as the arguments are shaped."""
        shape = (*self.density.batch_shape, self.density.event_dim)
        own = [np.asarray(argument, self.density.dtype) for argument in arguments]
        own = [np.broadcast_to(a, shape) if self.ndim else a[..., None] for a in own]
        value = np.asarray(_evaluate(function, self.density, *own), np.float64)
        return value if self.ndim else value[..., 0]

    def _mean(self) -> Any:
        return self._value("mean")

    def _var(self) -> Any:
        return self._value("variance")

    def _log_pdf(self, x: Any) -> Any:
        return self._value("log_pdf", np.asarray(x))

    def _pdf(self, x: Any) -> Any:
        return np.exp(self._log_pdf(x))

    def _cdf(self, x: Any) -> Any:
        return self._value("cdf", np.asarray(x))

    def _ppf(self, p: Any) -> Any:
        return self._value("ppf", np.asarray(p))

    def _energy_self(self) -> Any:
        value = self._value("mean_difference")
        return value.sum(axis=1) if self.ndim else value

    def _energy_x(self, x: Any) -> Any:
        value = self._value("crps", np.asarray(x)) + 0.5 * self._value("mean_difference")
        return value.sum(axis=1) if self.ndim else value

    def _sample(self, n_samples: int | None = None) -> Any:
        key = jax.random.key(np.random.randint(2**31 - 1))  # noqa: NPY002 - skpro's tests seed it
        draws = jaxmdn.sample(key, self.density, 1 if n_samples is None else n_samples)
        drawn = np.asarray(draws, np.float64)  # [S, N, D]
        if self.ndim == 0:
            return drawn[0, 0] if n_samples is None else pd.DataFrame(drawn)
        frames = [pd.DataFrame(part, index=self.index, columns=self.columns) for part in drawn]
        return frames[0] if n_samples is None else pd.concat(frames, keys=range(n_samples))

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Two normals apart in two columns of three rows, with names; a scalar."""
        loc = jnp.arange(12, dtype=jnp.float32).reshape(3, 2, 2)
        table = jaxmdn.Mixture(
            logits=jnp.zeros((3, 2), jnp.float32),
            components=jaxmdn.components.Normal(loc=loc, scale=jnp.ones_like(loc)),
        )
        scalar = jaxmdn.Mixture(
            logits=jnp.array([0.0, 1.0], jnp.float32),
            components=jaxmdn.components.Normal(loc=loc[0, :, :1], scale=0.5 + loc[0, :, :1]),
        )
        named = {"index": pd.Index([1, 2, 5]), "columns": pd.Index(["a", "b"])}
        return [{"density": table}, {"density": table, **named}, {"density": scalar}]


@jax.jit
def _mean_difference(density: Any) -> Array:
    flat = flatten_mixture(density).marginals()
    return mean_difference(flat, flat.dtype)


FUNCTIONS: dict[str, Any] = {
    "mean": jaxmdn.mean,
    "variance": jaxmdn.variance,
    "log_pdf": jax.jit(lambda density, x: density.marginal_log_prob(x)),
    "cdf": jaxmdn.cdf,
    "ppf": jax.jit(quantile_at),
    "crps": jaxmdn.crps,
    "mean_difference": _mean_difference,
}


def _evaluate(function: str, density: Any, *arguments: np.ndarray) -> Any:
    return FUNCTIONS[function](density, *map(jnp.asarray, arguments))


class MDNProbaRegressor(BaseProbaRegressor):
    """A mixture density network as skpro's regressor.

    Args:
      regressor: an :class:`jaxmdn.estimator.MDNRegressor` with all parameters; None: its defaults.
        It is cloned, not fitted itself.

    Attributes:
      regressor_: the one that was fitted.

    >>> import numpy as np, pandas as pd
    >>> from jaxmdn.estimator import MDNRegressor
    >>> from jaxmdn.estimator.probabilistic import MDNProbaRegressor
    >>> X = pd.DataFrame({"x": np.linspace(-1, 1, 40)})
    >>> small = MDNRegressor(recipe=None, hidden_features=(8,), max_epochs=2, random_state=0)
    >>> distribution = MDNProbaRegressor(small).fit(X, 3.0 * X).predict_proba(X)
    >>> distribution.mean().shape
    (40, 1)
    """

    _tags = {
        "capability:multioutput": True,
        "capability:missing": False,
        "X_inner_mtype": "pd_DataFrame_Table",
        "y_inner_mtype": "pd_DataFrame_Table",
    }

    def __init__(self, regressor: Any = None) -> None:
        self.regressor = regressor
        super().__init__()

    def _fit(self, X: pd.DataFrame, y: pd.DataFrame, C: Any = None) -> MDNProbaRegressor:
        self._columns = y.columns
        self.regressor_ = MDNRegressor() if self.regressor is None else clone(self.regressor)
        self.regressor_.fit(X.to_numpy(), y.to_numpy())
        return self

    def _predict(self, X: pd.DataFrame) -> pd.DataFrame:
        mean = self.regressor_.predict(X.to_numpy())
        return pd.DataFrame(mean, index=X.index, columns=self._columns)

    def _predict_proba(self, X: pd.DataFrame) -> MixtureDistribution:
        density = self.regressor_.predict_distribution(X.to_numpy())
        return MixtureDistribution(density, index=X.index, columns=self._columns)

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """A small network, of normals and of Student-t components."""
        small: dict[str, Any] = {
            "recipe": None,
            "components": 2,
            "hidden_features": (8,),
            "max_epochs": 3,
            "random_state": 0,
        }
        return [
            {"regressor": MDNRegressor(**small, family="normal")},
            {"regressor": MDNRegressor(**small)},
        ]
