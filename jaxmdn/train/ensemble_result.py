"""What ``fit_ensemble`` returns: networks, a linear model and the calibration of both."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmdn import checks
from jaxmdn.calibration.temperature import Temperature, apply_temperature
from jaxmdn.components import pickling
from jaxmdn.inference.cells import cell_log_prob
from jaxmdn.losses import log_prob
from jaxmdn.mixture.sampling import Estimate
from jaxmdn.train import padding
from jaxmdn.train.columns import Columns
from jaxmdn.train.data import as_arrays
from jaxmdn.train.linear import Linear
from jaxmdn.train.run import densities, moments
from jaxmdn.train.standardize import Standardizer, to_unit
from jaxmdn.typing import Array, Float


class Uncertainty(NamedTuple):
    """The two parts of the predictive variance, ``[N, D]``, in the target's unit squared.

    Attributes:
      aleatoric: the mean of the networks' own variances: noise that more rows would not remove.
      epistemic: the variance of the networks' means: what they do not agree about. The linear model
        counts as a network.
    """

    aleatoric: np.ndarray
    epistemic: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class EnsembleResult:
    """Networks trained on all folds but one each, and the calibrated mixture of them.

    Attributes:
      graphdef: the networks' architecture (NNX), in evaluation mode.
      networks: the state of all of them, ``[A, G, ...]``: A models (arms), each of G networks.
      folds: the fold of each training row that counts, ``[N]``.
      linear: a ridge regression that predicts beside the networks, in standardised units; None
        where it does not.
      temperature: fitted to the rows held out, in standardised units, for all networks; its last
        scale and weight are the linear model's, if there is one.
      narrowing: by this the networks' scales and the noise are smaller than those fitted, since new
        rows are predicted by more networks, which err less together.
      floor: the least noise under a scale, ``[D]``, in standardised units.
      columns: what becomes of gaps and categories among the inputs.
      x_standardizer, y_standardizer: the maps applied to inputs, after that, and targets.
      out_of_fold: the calibrated density of each training row under the networks that did not see
        it, in the target's unit. Nearly what to expect of new rows: epochs, temperatures and
        weights, a dozen numbers, were chosen by these rows. None after loading.
      history: per cycle: ``epochs`` so far, ``out_of_fold_nll`` and ``raw_nll`` (before
        calibration), nats a row in the target's unit, ``seconds`` since the start and
        ``rows_per_second`` of the cycle (rows of the table, for all networks together).
      cells: of targets on a grid its step, ``[D]``, in the target's unit: ``log_prob`` and the
        history's NLL are those of cells as wide. None: there is a density.
    """

    graphdef: Any
    networks: Any
    linear: Linear | None
    folds: np.ndarray
    temperature: Temperature
    narrowing: float
    floor: Array
    columns: Columns
    x_standardizer: Standardizer
    y_standardizer: Standardizer | None
    out_of_fold: Any
    history: dict[str, np.ndarray]
    cells: np.ndarray | None = None

    @property
    def model(self) -> Any:
        """The first of the networks, an NNX module; it maps standardised inputs."""
        return nnx.merge(self.graphdef, _first(self.networks))

    @property
    def num_networks(self) -> int:
        """How many networks predict together."""
        arms, each = jax.tree.leaves(self.networks)[0].shape[:2]
        return int(arms * each)

    def predict(self, x: Any) -> Any:
        """The predictive density of each row of ``x [N, F]``, in the target's own unit.

        Up to 16,384 rows are filled up to a power of two, so that tables of all lengths share 11
        compiled programs.
        """
        count, inputs = self._filled("predict", x)
        arms = densities(self.graphdef, self.networks, self.linear, inputs)
        density = apply_temperature(self.temperature, arms, floor=self.floor)
        y_map = self.y_standardizer
        return padding.cut(density if y_map is None else to_unit(density, y_map), count)

    def log_prob(self, x: Any, y: Any) -> Float[Array, "N"]:
        """Log-density of each row, ``[N]``, nats, in the target's own unit."""
        if len(x) != len(y):
            raise ValueError(f"log_prob: x has {len(x)} rows, y {len(y)}; pass as many of both.")
        count, inputs, y = self._filled("log_prob", x, as_arrays("log_prob", y, "y"))
        return padding.cut(self._log_prob(inputs, y), count)

    def _log_prob(self, inputs: Any, y: Any) -> Float[Array, "N"]:
        arms = densities(self.graphdef, self.networks, self.linear, inputs)
        density = apply_temperature(self.temperature, arms, floor=self.floor)
        y_map = self.y_standardizer
        if self.cells is not None and y_map is not None:
            return cell_log_prob(density, y_map(y), self.cells / y_map.scale)
        if y_map is None:
            return log_prob(density, jnp.asarray(y))
        log_det = y_map.log_det_at(density.support, y)
        return log_prob(density, y_map(y)) - jnp.asarray(log_det).astype(density.dtype)

    def uncertainty(self, x: Any) -> Uncertainty:
        """Split the predictive variance of each row of ``x [N, F]`` by the law of total variance.

        The networks count as the calibration weighs them, with the scales that it gives them; the
        outliers that it allows for are left out.

        References:
          Depeweg et al. (2018), Decomposition of uncertainty in Bayesian deep learning, eq. 10.
        """
        count, x = self._filled("uncertainty", x)
        networks = self.graphdef, self.networks, self.linear
        share, *found = map(np.asarray, moments(*networks, x, self.temperature, self.floor))
        share, (means, variances) = share[:, None, None], (part[:, :count] for part in found)
        mean = np.sum(share * means, axis=0)
        aleatoric = np.sum(share * variances, axis=0)
        epistemic = np.sum(share * (means - mean) ** 2, axis=0)
        unit = 1.0 if self.y_standardizer is None else self.y_standardizer.scale**2
        return Uncertainty(aleatoric * unit, epistemic * unit)

    def importance(self, x: Any, y: Any, *, num_repeats: int = 5, seed: int = 0) -> Estimate:
        """What each input is worth: the NLL lost where its column is shuffled, nats a row, ``[F]``.

        Args:
          x, y: rows that the networks were not trained on.
          num_repeats: shuffles of each column, at least 2.
          seed: of the shuffles.

        References:
          Breiman (2001), Random forests, section 10.
        """
        checks.require_count("importance", "num_repeats", num_repeats, minimum=2)
        inputs = np.array(self.x_standardizer(self.columns(x, function="importance")))
        sources, y = self.columns.sources, as_arrays("importance", y, "y")
        rng = np.random.default_rng(seed)
        nll = -float(np.mean(self._log_prob(jnp.asarray(inputs), y)))
        losses = np.empty((num_repeats, sources[-1] + 1))
        for (repeat, column), _ in np.ndenumerate(losses):
            own, shuffled = sources == column, inputs.copy()
            shuffled[:, own] = inputs[rng.permutation(len(inputs))][:, own]
            losses[repeat, column] = -np.mean(self._log_prob(jnp.asarray(shuffled), y)) - nll
        error = losses.std(axis=0, ddof=1) / num_repeats**0.5
        return Estimate(jnp.asarray(losses.mean(axis=0)), jnp.asarray(error))

    def _filled(self, function: str, x: Any, *others: Any) -> tuple[Any, ...]:
        """N, and standardised inputs and what else there is, filled up to a power of two rows."""
        count, filled = padding.fill((self.columns(x, function=function), *others))
        return count, self.x_standardizer(filled[0]), *filled[1:]

    def __reduce__(self) -> tuple[Any, ...]:
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        networks = nnx.merge(own.pop("graphdef"), own.pop("networks"))
        return _rebuild, (networks, pickling.pack(own))

    def __repr__(self) -> str:
        nll = self.history["out_of_fold_nll"].min()
        return f"EnsembleResult({self.num_networks} networks, out_of_fold_nll={nll:.4f} nats)"


def _rebuild(networks: Any, fields: dict[str, Any]) -> EnsembleResult:
    """What a pickle describes; one module holds all networks' parameters, ``[A, G, ...]``."""
    graphdef, state = nnx.split(networks)
    return EnsembleResult(graphdef=graphdef, networks=state, **pickling.unpack(fields))


@jax.jit
def _first(networks: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0, 0], networks)
