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
from benchmarks.densities import JAX, scale_of, split, textbook
from jaxmdn import numerics

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
      raw: raw outputs by parameterization, ``[N, P]``; empty if linear.
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

    def arguments(self, parameterization: str) -> tuple[Any, ...]:
        """What a loss takes: raw outputs or the layer, and the targets."""
        return (*(self.layer or (self.raw[parameterization],)), self.y)

    def expected(self, parameterization: str) -> Expected:
        """What float64 autodiff of the textbook's formula gives."""
        own = self.case.covariance == "full" and not self.layer
        return _expected(_shared(self.case), parameterization if own else "whitening")

    @functools.cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of every row's density, ``[N, D]``, in float64."""
        with jax.enable_x64(True):
            mixture = jax.jit(self.case.head)(float64(self.raw["whitening"]))
            return jax.tree.map(np.asarray, jax.jit(lambda m: (m.mean(), m.variance()))(mixture))


def float64(tree: Any) -> Any:
    """All arrays in float64, whatever they were."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf).astype(np.float64)), tree)


def create(case: Case) -> Problem:
    """Draw a case's arrays: moderate numbers, so that nothing underflows or dominates."""
    return dataclasses.replace(_draw(_shared(case)), case=case)


def _shared(case: Case) -> Case:
    """The case that stands for all operations on the same numbers, drawn and solved once."""
    operation = "linear_nll" if case.linear else "nll"
    return dataclasses.replace(case, operation=operation, sweep="figures")


@functools.lru_cache(maxsize=1)
def _draw(case: Case) -> Problem:
    rng, dtype = np.random.default_rng(0), jnp.dtype(case.dtype)
    width, event = case.head.num_outputs, (case.rows, case.dim)
    # Standard deviations of the raw outputs: small for scales and correlations.
    spreads = (1.0, 1.0, 0.3, 0.5 / math.sqrt(case.dim))
    sizes = [math.prod(block) for block in case.head.blocks]
    spread = np.repeat(np.asarray(spreads[: len(sizes)], np.float32), sizes)  # [P]
    layer, raw = (), {}
    if case.linear:
        # raw = hidden @ kernel, so that the raw outputs are about as large as in the other cases.
        hidden = rng.standard_normal((case.rows, case.hidden), np.float32)
        kernel = rng.standard_normal((case.hidden, width), np.float32)
        kernel *= spread / np.float32(math.sqrt(case.hidden))
        layer = tuple(jnp.asarray(a, dtype) for a in (hidden, kernel, np.zeros(width, np.float32)))
    else:
        whitening = (rng.standard_normal((case.rows, width), np.float32) * spread).astype(dtype)
        raw = dict.fromkeys(("whitening", "scale_tril"), jnp.asarray(whitening))
        if case.covariance == "full" and case.peers:
            with jax.enable_x64(True):
                factors = np.asarray(_to_scale_tril(case, float64(whitening)))
            raw["scale_tril"] = jnp.asarray(factors.astype(dtype))
    return Problem(
        case=case,
        raw=raw,
        y=jnp.asarray(rng.standard_normal(event, np.float32)),
        layer=layer,
        key=jax.random.key(0),
        probability=jnp.asarray(rng.uniform(0.01, 0.99, event).astype(np.float32)),
    )


@functools.partial(jax.jit, static_argnums=0)
def _to_scale_tril(case: Case, raw: Any) -> Any:
    """Raw numbers of the same densities for a head that takes the covariance's factor.

    ``W = diag(1 / scale) U`` has the inverse ``U^-1 diag(scale)``, whose diagonal is the scale
    again: only the numbers below it change.
    """
    logits, loc, raw_scale, lower = split(case, raw)
    unit = JAX.fill(lower, jnp.ones_like(raw_scale))
    diagonal = JAX.fill(jnp.zeros_like(lower), scale_of(JAX, case, raw_scale))
    factor = jax.lax.linalg.triangular_solve(unit, diagonal, left_side=True, lower=True)
    parts = (logits, loc, raw_scale, factor[(..., *np.tril_indices(case.dim, -1))])
    return jnp.concatenate([part.reshape(case.rows, -1) for part in parts], axis=-1)


@functools.lru_cache(maxsize=2)
def _expected(case: Case, parameterization: str) -> Expected:
    """Accumulate value and gradients over blocks of rows."""
    problem = _draw(case)
    leading, *shared, targets = map(np.asarray, problem.arguments(parameterization))
    log_prob = textbook if parameterization == "whitening" else scale_tril_log_prob

    def total(leading: Any, shared: Any, y: Any) -> tuple[Any, Any]:
        raw = leading @ shared[0] + shared[1] if shared else leading
        rows = log_prob(JAX, case, raw, y)
        return -jnp.sum(rows) / case.rows, rows

    value, rows, gradients, of_shared = 0.0, [], [], []
    block = max(1, min(case.rows, BLOCK_ENTRIES // case.head.num_outputs))
    with jax.enable_x64(True):
        differentiate = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
        for start in range(0, case.rows, block):
            part, y = float64((leading[start : start + block], targets[start : start + block]))
            (share, log_probs), (gradient, rest) = differentiate(part, float64(shared), y)
            value += float(share)
            of_shared.append(jax.tree.map(np.asarray, rest))
            if start < CHECKED_ROWS:
                rows.append(np.asarray(log_probs))
                gradients.append(np.asarray(gradient))
    sums = (sum(parts) for parts in zip(*of_shared, strict=True))
    return Expected(value, np.concatenate(rows), (np.concatenate(gradients), *sums))


def scale_tril_log_prob(xp: Any, case: Case, raw: Any, y: Any) -> Any:
    """The density that :func:`_to_scale_tril` preserves, by a triangular solve."""
    logits, loc, raw_scale, lower = split(case, raw)
    scale = scale_of(xp, case, raw_scale)
    z = numerics.solve_tril(xp.fill(lower, scale), y[:, None, :] - loc)
    normal = -0.5 * (z**2 + math.log(2 * math.pi)) - jnp.log(scale)
    return xp.logsumexp(xp.log_softmax(logits) + normal.sum(-1), -1)
