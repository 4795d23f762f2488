"""A case's arrays and, in float64, what must come out.

A full covariance can be written by its own Cholesky factor (``"scale_tril"``, what distrax, TFP,
numpyro and torch take) or by that factor's inverse (``"whitening"``, what jaxmdn takes). The two
have equally many raw numbers, so every contender is given the one its library is made for, of the
same density, and differentiates with respect to that. Otherwise the two are the same numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case
from benchmarks.densities import split
from jaxmdn import losses, numerics

BLOCK_ENTRIES = 2**22  # of raw outputs, in one float64 pass
CHECKED_ROWS = 2**16  # whose gradient is compared; the value is compared over all rows


class Expected(NamedTuple):
    """What a contender must return, in float64.

    Attributes:
      value: the mean NLL.
      rows: log-densities of the first rows.
      gradients: of the raw outputs' first rows; or of the features' first rows, kernel and bias.
    """

    value: float
    rows: np.ndarray
    gradients: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Problem:
    """The arrays of a case.

    Attributes:
      case: the case.
      raw: raw outputs by parameterization, ``[N, P]``.
      y: targets ``[N, D]``, float32.
      layer: features ``[N, H]``, kernel ``[H, P]`` and bias ``[P]``; empty if not linear.
      key: for sampling.
      probability: ``[N, D]``, for quantiles.
    """

    case: Case
    raw: dict[str, Any]
    y: Any
    layer: tuple[Any, ...]
    key: Any
    probability: Any

    @property
    def expected(self) -> dict[str, Expected]:
        """By parameterization: what float64 autodiff of the plain composition gives."""
        return _expectations(_shared(self.case))

    @functools.cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of every row's density, ``[N, D]``, in float64."""
        with jax.enable_x64(True):
            mixture = self.case.head(_float64(self.raw["whitening"]))
            return np.asarray(mixture.mean()), np.asarray(mixture.variance())


def create(case: Case) -> Problem:
    """Draw a case's arrays: moderate numbers, so that nothing underflows or dominates."""
    return dataclasses.replace(_draw(_shared(case)), case=case)


def _shared(case: Case) -> Case:
    """The case that stands for all operations on the same numbers, drawn and solved once."""
    operation = "linear_nll" if case.linear else "nll"
    return dataclasses.replace(case, operation=operation, sweep="figures")


@functools.lru_cache(maxsize=1)
def _expectations(case: Case) -> dict[str, Expected]:
    problem = _draw(case)
    with jax.enable_x64(True):
        expected = {"whitening": _expected(problem, "whitening")}
        expected["scale_tril"] = expected["whitening"]
        if case.covariance == "full" and not problem.layer and case.peers:
            expected["scale_tril"] = _expected(problem, "scale_tril")
    return expected


@functools.lru_cache(maxsize=1)
def _draw(case: Case) -> Problem:
    rng, dtype = np.random.default_rng(0), jnp.dtype(case.dtype)
    width, event = case.head.num_outputs, (case.rows, case.dim)
    layer: tuple[Any, ...] = ()
    if case.linear:
        # raw = hidden @ kernel, so that the raw outputs are about as large as in the other cases.
        hidden = rng.standard_normal((case.rows, case.hidden), np.float32)
        kernel = rng.standard_normal((case.hidden, width), np.float32)
        kernel *= _spread(case) / np.float32(math.sqrt(case.hidden))
        layer = tuple(
            jnp.asarray(array.astype(dtype))
            for array in (hidden, kernel, np.zeros(width, np.float32))
        )
        raw = {}
    else:
        numbers = rng.standard_normal((case.rows, width), np.float32)
        numbers *= _spread(case)
        whitening = numbers.astype(dtype)
        raw = {"whitening": jnp.asarray(whitening)}
        raw["scale_tril"] = raw["whitening"]
        if case.covariance == "full" and case.peers:
            raw["scale_tril"] = jnp.asarray(_to_scale_tril(case, whitening))
    return Problem(
        case=case,
        raw=raw,
        y=jnp.asarray(rng.standard_normal(event, np.float32)),
        layer=layer,
        key=jax.random.key(0),
        probability=jnp.asarray(rng.uniform(0.01, 0.99, event).astype(np.float32)),
    )


def _spread(case: Case) -> np.ndarray:
    """Standard deviation of every raw output, ``[P]``: small for scales and correlations."""
    spreads = (1.0, 1.0, 0.3, 0.5 / math.sqrt(case.dim))
    parts = [
        np.full(math.prod(block), spread, np.float32)
        for block, spread in zip(case.head.blocks, spreads, strict=False)
    ]
    return np.concatenate(parts)


def _to_scale_tril(case: Case, raw: np.ndarray) -> np.ndarray:
    """Raw numbers of the same densities for a head that takes the covariance's factor.

    ``W = diag(1 / scale) U`` has the inverse ``U^-1 diag(scale)``, whose diagonal is the scale
    again: only the numbers below it change.
    """
    logits, loc, raw_scale, lower = split(case, raw.astype(np.float64))
    rows, columns = np.tril_indices(case.dim, -1)
    unit = np.zeros((*loc.shape, case.dim)) + np.eye(case.dim)
    unit[..., rows, columns] = lower
    factor = np.linalg.inv(unit) * np.exp(raw_scale)[..., None, :]
    parts = (logits, loc, raw_scale, factor[..., rows, columns])
    flat = [part.reshape(case.rows, -1) for part in parts]
    return np.concatenate(flat, axis=-1).astype(raw.dtype)


def _float64(array: Any) -> Any:
    return jnp.asarray(np.asarray(array).astype(np.float64))


def _expected(problem: Problem, parameterization: str) -> Expected:
    """Accumulate value and gradients over blocks of rows."""
    case = problem.case
    head, count = case.head, case.rows
    block = max(1, min(count, BLOCK_ENTRIES // head.num_outputs))
    shared = tuple(map(_float64, problem.layer[1:]))

    def total(leading: Any, shared: tuple[Any, ...], y: Any) -> tuple[Any, Any]:
        raw = leading @ shared[0] + shared[1] if shared else leading
        if parameterization == "whitening":
            rows = losses.nll(head, raw, y, reduction="none", implementation="xla")
        else:
            rows = -scale_tril_log_prob(head, raw, y)
        return jnp.sum(rows) / count, -rows

    differentiate = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    leading = np.asarray(problem.layer[0] if problem.layer else problem.raw[parameterization])
    targets = np.asarray(problem.y)
    value, rows, gradients, shared_gradients = 0.0, [], [], None
    for start in range(0, count, block):
        part, y = _float64(leading[start : start + block]), _float64(targets[start : start + block])
        (share, log_prob), (gradient, rest) = differentiate(part, shared, y)
        value += float(share)
        shared_gradients = (
            rest if shared_gradients is None else jax.tree.map(jnp.add, shared_gradients, rest)
        )
        if start < CHECKED_ROWS:
            rows.append(np.asarray(log_prob))
            gradients.append(np.asarray(gradient))
    whole = (np.concatenate(gradients), *map(np.asarray, shared_gradients or ()))
    return Expected(value, np.concatenate(rows), whole)


def scale_tril_log_prob(head: Any, raw: Any, y: Any) -> Any:
    """The density that :func:`_to_scale_tril` preserves, by a triangular solve."""
    logits, loc, raw_scale, lower = head.split(raw)
    scale = head.min_scale + head.link(raw_scale)
    factor = numerics.unpack_unit_tril(lower, head.event_dim)
    diagonal = jnp.eye(head.event_dim, dtype=raw.dtype) * (scale - 1)[..., None]
    z = numerics.solve_tril(factor + diagonal, y[:, None, :] - loc)
    constant = 0.5 * numerics.LOG_2PI * head.event_dim
    component = -0.5 * jnp.sum(z * z, axis=-1) - jnp.sum(jnp.log(scale), axis=-1) - constant
    return jax.nn.logsumexp(jax.nn.log_softmax(logits) + component, axis=-1)
