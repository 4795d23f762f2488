"""What a network is worth on rows, in evaluation mode: a batch at a time, on any mesh.

``program`` is the :class:`jaxmdn.train.program.Program` of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmdn.calibration.temperature import fit_scale_factor
from jaxmdn.inference.cells import log_likelihood
from jaxmdn.inference.widening import widen
from jaxmdn.losses.reductions import reduce
from jaxmdn.train.data import Rows
from jaxmdn.train.report import component_statistics, mean_weights
from jaxmdn.typing import Array

EVALUATION_BATCH = 4096
USAGE_ROWS = 1024  # of the training rows, spread evenly, show an epoch's use of the components


def negative_log_likelihood(model: Any, x: Any, y: Any, weights: Array, key: Array) -> Array:
    """The loss of :func:`jaxmdn.train.fit` unless told otherwise."""
    return model.nll(x, y, weights=weights)


def judged_by_nll(loss: Any) -> bool:
    """Whether the NLL of the validation rows says how good the parameters are."""
    own = loss is negative_log_likelihood or cell_width(loss) is not None
    return own or getattr(loss, "surrogate", False)


def cell_width(loss: Any) -> np.ndarray | None:
    """The width of the cells that targets are scored by, ``[D]``; None: they have a density."""
    found = getattr(loss, "width", None)
    return None if found is None else np.asarray(found, np.float32)


def _over_batches(
    program: Any, params: Any, model_state: Any, rows: Rows, function: Callable[..., Any]
) -> Any:
    """Map ``function(model, batch)`` over evaluation batches; the results are stacked."""

    def one(cut: tuple[Array, Array]) -> Any:
        model = nnx.merge(program.eval_graph, params, model_state, copy=True)
        return function(model, program.cut(rows, cut))

    cuts = program.cuts(jnp.arange(rows.size), min(EVALUATION_BATCH, rows.size))
    return program.layout.on_every_device(jax.lax.map(one, cuts))


@partial(jax.jit, static_argnums=0)
def _evaluate(
    program: Any, params: Any, model_state: Any, rows: Rows, factor: Array | None
) -> Array:
    """Weighted mean NLL over rows, scales times ``factor``, in standardised units."""

    def total(model: Any, batch: Rows) -> Array:
        width = cell_width(program.loss)
        if factor is not None or width is not None:
            density = widen(model(batch.x), factor) if factor is not None else model(batch.x)
            log_prob = log_likelihood(density, batch.y, width)
            return reduce(-log_prob, batch.weights, None, "sum")
        return model.nll(batch.x, batch.y, weights=batch.weights, reduction="sum")

    sums = _over_batches(program, params, model_state, rows, total)
    return jnp.sum(sums) / jnp.sum(rows.weights).astype(sums.dtype)


@partial(jax.jit, static_argnums=0)
def validate(
    program: Any, params: Any, model_state: Any, key: Array, rows: Rows
) -> tuple[Array, Array, Array | None]:
    """The NLL over rows, the loss that is trained, and the temperature where one is fitted."""
    factor = _temperature(program, params, model_state, rows) if program.calibrate else None
    nll = _evaluate(program, params, model_state, rows, factor)
    if judged_by_nll(program.loss):
        return nll, nll, factor
    loss = getattr(program.loss, "clean", program.loss)  # without the noise of training

    def weighted(model: Any, batch: Rows) -> Array:
        return loss(model, *batch, key) * jnp.sum(batch.weights)

    sums = _over_batches(program, params, model_state, rows, weighted)
    return nll, jnp.sum(sums) / jnp.sum(rows.weights).astype(sums.dtype), None


@partial(jax.jit, static_argnums=0)
def _temperature(program: Any, params: Any, model_state: Any, rows: Rows) -> Array:
    model, some = _some(program, params, model_state, rows, EVALUATION_BATCH)
    options = {"weights": some.weights, "width": cell_width(program.loss)}
    return program.layout.on_every_device(fit_scale_factor(model(some.x), some.y, **options))


def _some(program: Any, params: Any, model_state: Any, rows: Rows, most: int) -> tuple[Any, Rows]:
    """The network and some of the rows, spread evenly over all."""
    model = nnx.merge(program.eval_graph, params, model_state, copy=True)
    return model, rows.take(spread_out(rows.size, most))


def spread_out(count: int, most: int) -> np.ndarray:
    """At most so many of ``0 .. count - 1``, evenly spread."""
    return np.linspace(0, count - 1, min(most, count)).astype(np.int32)


@partial(jax.jit, static_argnums=0)
def usage(program: Any, params: Any, model_state: Any, rows: Rows) -> Array | None:
    """Mean mixing coefficients ``[K]`` over some of the rows; None without components."""
    model, some = _some(program, params, model_state, rows, USAGE_ROWS)
    return program.layout.on_every_device(mean_weights(model(some.x), some.weights))


@partial(jax.jit, static_argnums=0)
def report(program: Any, params: Any, model_state: Any, rows: Rows) -> Any:
    """What :func:`jaxmdn.train.report.combine` makes a report of."""

    def statistics(model: Any, batch: Rows) -> Any:
        counts = (batch.weights > 0).astype(batch.weights.dtype)
        return component_statistics(program.head, model(batch.x), counts)

    return _over_batches(program, params, model_state, rows, statistics)
