"""Is it the right number? What a contender returned, against float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmdn
from benchmarks import epochs, training
from benchmarks.cases import Case
from benchmarks.problem import Problem, float64

# Beyond these a number is wrong, whatever the rounding: what is recorded is the error itself.
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}
GRADIENT_PROMISES = {"float32": 1e-5, "bfloat16": 2e-2}
SAMPLE_TOLERANCE = 0.1


def errors(problem: Problem, parameterization: str, output: Any) -> dict[str, float]:
    """Return the errors of a result, by name; each is to be held against :func:`tolerance`.

    ``value``: relative to one nat or to the value, whichever is larger; for quantiles, of the
    probability; ``gradient``: the largest, over arrays, of ``max |g - g64| / max |g64|``;
    ``moments``: how far the means and variances of samples stray beyond what chance explains.
    """
    case = problem.case
    if case.operation == "sample":
        return {"moments": _sampling_error(problem, output)}
    if case.operation == "quantile":
        with jax.enable_x64(True):
            mixture = case.head(float64(problem.raw["whitening"]))
            reached = np.asarray(jaxmdn.cdf(mixture, jnp.asarray(_array(output))))
        return {"value": float(np.abs(reached - _array(problem.probability)).max())}
    if case.operation == "fit_epoch":
        return {"value": _relative(_array(output), epochs.expected(case))}
    if case.is_step:
        return {"value": _relative(_array(output), training.expected(case))}
    expected = problem.expected(parameterization)
    if case.operation == "log_prob":
        return {"value": _relative(_array(output)[: len(expected.rows)], expected.rows)}
    value, gradients = output if case.gradient else (output, ())
    found = {"value": _relative(_array(value), np.asarray(expected.value))}
    if case.gradient:
        pairs = zip(gradients, expected.gradients, strict=True)
        found["gradient"] = float(
            np.max([np.abs(_array(g)[: len(e)] - e).max() / np.abs(e).max() for g, e in pairs])
        )  # NaN stays
    return found


def tolerance(case: Case) -> float:
    """The error beyond which a contender computes something else."""
    if case.operation == "sample":
        return SAMPLE_TOLERANCE
    if case.operation == "fit_epoch":
        return epochs.SHUFFLE_TOLERANCE
    if case.linear and jax.default_backend() != "cpu":
        return TOLERANCES["bfloat16"]  # accelerators round the operands of products by default
    return TOLERANCES[case.dtype]


def is_wrong(found: dict[str, float], limit: float) -> bool:
    """Whether an error exceeds the limit, or is not a number."""
    return not all(error <= limit for error in found.values())


def _array(value: Any) -> np.ndarray:
    """Any library's array, or a list of them, in float64."""
    if isinstance(value, list):
        return np.stack([_array(part) for part in value])
    return np.asarray(value.cpu() if hasattr(value, "cpu") else value).astype(np.float64)


def _relative(found: np.ndarray, exact: np.ndarray) -> float:
    if found.shape != exact.shape:
        raise ValueError(f"the result has shape {found.shape}, expected {exact.shape}")
    return float(np.abs(found - exact).max() / max(1.0, np.abs(exact).max()))


def _sampling_error(problem: Problem, output: Any) -> float:
    """First and second moment of all samples about their rows' means, in exact deviations.

    Both averages are over all rows and dimensions; six standard errors are granted to chance.
    """
    mean, variance = problem.moments
    case = problem.case
    z = _array(output).reshape(case.draws, case.rows, case.dim) - mean
    z /= np.sqrt(variance)
    # A sampler that ignores the weights or mixes up rows is far off in the rows' own means.
    row_means = np.mean(np.mean(z, axis=0) ** 2) * case.draws - 1
    bound = 6 * np.sqrt(2 / case.rows)
    mean_error = abs(np.mean(z)) - 6 / np.sqrt(case.draws * case.rows)
    return float(np.max([abs(row_means) - bound, mean_error, abs(np.mean(z**2) - 1) - bound, 0]))
