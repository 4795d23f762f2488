"""What ``fit`` returns: a network, and what brings its densities to the target's own unit."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmdn.components.base import Density
from jaxmdn.inference.cells import log_likelihood
from jaxmdn.inference.widening import widen
from jaxmdn.mixture.class_conditional import Labeled
from jaxmdn.train import padding
from jaxmdn.train.data import as_arrays
from jaxmdn.train.prepare import Map, map_targets
from jaxmdn.train.report import ComponentReport
from jaxmdn.train.standardize import Standardizer, to_unit
from jaxmdn.typing import Array, Float


@dataclasses.dataclass(frozen=True, repr=False)
class FitResult:
    """A trained network with all it takes to predict in the target's own unit.

    Attributes:
      model: the trained NNX module (the one passed in), in evaluation mode. It works on
        standardised numbers; :meth:`predict` converts.
      x_standardizer, y_standardizer: the maps applied to inputs and targets; None where none was.
      history: per epoch, from epoch 0 (the initial parameters): ``train_nll`` and ``valid_nll`` in
        nats in the target's unit (NaN where there is none; with a ``loss`` of your own
        ``train_loss``, ``valid_loss``, in standardised units, and ``valid_nll``), ``temperature``
        (where it is fitted, and ``valid_nll`` is that with it), ``grad_norm``
        (mean over the steps, before clipping), ``learning_rate`` (NaN unless the optimizer is
        wrapped by ``optax.inject_hyperparams``), ``seconds`` since the start, ``rows_per_second``
        and, for mixtures, ``mean_weight [epochs, K]``: the mixing coefficients, averaged over (at
        most 1,024 of) the training rows.
      best_epoch: the epoch whose parameters were kept.
      report: use of the components over the training rows; None for heads without components.
      temperature: the factor of all scales, at least one, that the validation rows like best;
        ``predict`` and ``log_prob`` apply it, ``model`` alone does not.
      cells: of targets on a grid its step, ``[D]``, in the target's unit: ``log_prob`` and the
        history's NLL are those of cells as wide. None: there is a density.
    """

    model: Any
    x_standardizer: Map | None
    y_standardizer: Standardizer | None
    history: dict[str, np.ndarray]
    best_epoch: int
    report: ComponentReport | None
    temperature: float = 1.0
    cells: np.ndarray | None = None

    def predict(self, x: Any) -> Any:
        """The predictive density of each row of ``x [N, ...]``, in the target's own unit.

        Up to 16,384 rows are filled up to a power of two, so that tables of all lengths share 11
        compiled programs.
        """
        graphdef, state = nnx.split(self.model)
        count, x = padding.fill(as_arrays("predict", x, "x"))
        inputs = x if self.x_standardizer is None else self.x_standardizer(x)
        density = _predict(graphdef, state, self.factor, self.y_standardizer, inputs)
        return padding.cut(density, count)

    def log_prob(self, x: Any, y: Any) -> Float[Array, "..."]:
        """Log-density of each target, ``[N]`` (``[N, T]``), nats, in the target's own unit.

        Of targets on a grid it is the log-probability of their :attr:`cells`.
        """
        graphdef, state = nnx.split(self.model)
        rows = as_arrays("log_prob", x, "x"), as_arrays("log_prob", y, "y")
        count, (x, y) = padding.fill(rows)
        log_det, width = 0.0, self.cells
        if width is not None and self.y_standardizer is not None:
            width = width / self.y_standardizer.scale
        elif self.y_standardizer is not None:
            targets = y.y if isinstance(y, Labeled) else y
            log_det = self.y_standardizer.log_det_at(self.model.head.support, targets)
        y = map_targets(self.y_standardizer, y)
        inputs = x if self.x_standardizer is None else self.x_standardizer(x)
        own = (self.factor, inputs, y, log_det, width)
        return padding.cut(_log_prob(graphdef, state, *own), count)

    @property
    def factor(self) -> float | None:
        """The temperature; None where the network's density is that of the result."""
        return None if self.temperature == 1.0 else self.temperature

    def __repr__(self) -> str:
        valid = float(self.history["valid_nll"][self.best_epoch])
        return (
            f"FitResult({type(self.model).__name__}, best_epoch={self.best_epoch} of "
            f"{len(self.history['seconds']) - 1}, valid_nll={valid:.4f} nats)"
        )


@partial(jax.jit, static_argnums=0)
def _predict(graphdef: Any, state: Any, factor: Any, y_map: Any, x: Any) -> Density:
    density = calibrated(nnx.merge(graphdef, state)(x), factor)
    return density if y_map is None else to_unit(density, y_map)


@partial(jax.jit, static_argnums=0)
def _log_prob(
    graphdef: Any, state: Any, factor: Any, x: Any, y: Any, log_det: Any, width: Any
) -> Array:
    model = nnx.merge(graphdef, state)
    if factor is None and width is None:
        value = -model.nll(x, y, reduction="none")
    else:
        value = log_likelihood(calibrated(model(x), factor), y, width)
    return value - jnp.asarray(log_det).astype(value.dtype)


def calibrated(density: Any, factor: Any) -> Any:
    """A density with all its scales times ``factor``; None stands for one."""
    return density if factor is None else widen(density, factor)
