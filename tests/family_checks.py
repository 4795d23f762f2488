"""What every family of independent dimensions must do, against an oracle that SciPy gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

import jaxmdn

#: One shape for everything, so that each family compiles once per dtype: rows, components, D.
N, K, D = 64, 3, 2


@dataclasses.dataclass(frozen=True)
class Case:
    """A family, how to draw its parameters, and the frozen distribution that they should give."""

    name: str
    family: Any
    draw: Callable[[np.random.Generator, tuple[int, ...]], dict[str, np.ndarray]]
    oracle: Callable[..., Any]
    constants: dict[str, float] = dataclasses.field(default_factory=dict)

    def parameters(self, seed, shape, dtype=np.float64):
        drawn = self.draw(np.random.default_rng(seed), shape)
        return {name: np.asarray(value, dtype) for name, value in drawn.items()}

    def make(self, parameters):
        arrays = {name: jnp.asarray(value) for name, value in parameters.items()}
        return self.family(**arrays, **self.constants)

    def exact(self, parameters):
        return self.oracle(**{k: np.asarray(v, np.float64) for k, v in parameters.items()})


class Through:
    """The distribution of an increasing function of a variable with a known one."""

    def __init__(self, base, forward, back, log_slope):
        """``y = forward(x)``, ``x = back(y)``, ``log_slope = log dx/dy`` at ``y``."""
        self.base, self.forward, self.back, self.log_slope = base, forward, back, log_slope
        for name in ("cdf", "sf", "logcdf", "logsf"):  # as methods of the base, at x
            setattr(self, name, partial(lambda f, y: f(back(y)), getattr(base, name)))

    def logpdf(self, y):
        return self.base.logpdf(self.back(y)) + self.log_slope(y)

    def ppf(self, p):
        return self.forward(self.base.ppf(p))

    def _expect(self, function):
        # The trapezoidal rule over the normal scores of y, fine enough for 1e-10.
        z = np.linspace(-9, 9, 2001).reshape(-1, *(1,) * np.ndim(self.base.mean()))
        weights = stats.norm.pdf(z)
        return np.sum(weights * function(self.ppf_score(z)), axis=0) / np.sum(weights)

    def ppf_score(self, z):
        return self.forward(self.base.mean() + self.base.std() * z)

    def mean(self):
        return self._expect(lambda y: y)

    def var(self):
        mean = self.mean()
        return self._expect(lambda y: (y - mean) ** 2)


@jax.jit
def evaluate(family, y, p):
    """All elementwise functions at once: one compilation for each family and dtype."""
    return {
        "log_density": family.marginal_log_prob(y),
        "cdf": family.cdf(y),
        "survival": family.survival(y),
        "log_cdf": family.log_cdf(y),
        "log_survival": family.log_survival(y),
        "quantile": family.quantile(p),
        "mean": family.mean(),
        "variance": family.variance(),
    }


def expected(oracle, y, p):
    return {
        "log_density": oracle.logpdf(y),
        "cdf": oracle.cdf(y),
        "survival": oracle.sf(y),
        "log_cdf": oracle.logcdf(y),
        "log_survival": oracle.logsf(y),
        "quantile": oracle.ppf(p),
        "mean": oracle.mean(),
        "variance": oracle.var(),
    }


def levels(seed, shape):
    """Probabilities from 1e-6 to 1 - 1e-6, as many near the ends as in the middle."""
    rng = np.random.default_rng(seed)
    p = 10 ** rng.uniform(-6, -0.31, shape)
    return np.where(rng.random(shape) < 0.5, p, 1 - p)


LOGARITHMS = ("log_density", "log_cdf", "log_survival")


def check_values(case, dtype, tolerance, names=None):
    """Compare with the oracle, in float64 at the very numbers that the family was given."""
    parameters = case.parameters(1, (N, 1), dtype)
    p = levels(2, (N, 1)).astype(dtype)
    y = np.asarray(case.exact(parameters).ppf(levels(3, (N, 1))), dtype)
    found = evaluate(case.make(parameters), jnp.asarray(y), jnp.asarray(p))
    exact = expected(case.exact(parameters), y.astype(np.float64), p.astype(np.float64))
    for name in names or found:
        assert found[name].dtype == dtype
        rtol = tolerance.get(name, tolerance["any"])
        # Logarithms near zero have absolute accuracy: they are logarithms of numbers near one.
        atol = rtol if name in LOGARITHMS else 0
        np.testing.assert_allclose(found[name], exact[name], rtol=rtol, atol=atol, err_msg=name)


def check_gradients(case, rtol=2e-6):
    """Derivatives in every parameter and argument, against central differences of the oracle."""
    parameters = case.parameters(4, (N, 1))
    p = np.random.default_rng(5).uniform(0.02, 0.98, (N, 1))
    y = case.exact(parameters).ppf(np.random.default_rng(6).uniform(0.02, 0.98, (N, 1)))

    @jax.jit
    def slopes(parameters, y, p):
        def outputs(parameters, y, p):
            family = case.make(parameters)
            return {
                "log_density": family.marginal_log_prob(y),
                "cdf": family.cdf(y),
                "log_cdf": family.log_cdf(y),
                "log_survival": family.log_survival(y),
                "quantile": family.quantile(p),
            }

        def along(direction):
            return jax.jvp(outputs, (parameters, y, p), direction)[1]

        zero = jax.tree.map(jnp.zeros_like, (parameters, y, p))
        one = jax.tree.map(jnp.ones_like, (parameters, y, p))
        forward = {
            name: along(({**zero[0], name: one[0][name]}, zero[1], zero[2])) for name in parameters
        }
        forward["y"], forward["p"] = along((zero[0], one[1], zero[2])), along((*zero[:2], one[2]))
        # Reverse mode must agree: the sum of all outputs, element by element.
        backward = jax.grad(
            lambda *a: sum(jnp.sum(v) for v in jax.tree.leaves(outputs(*a))), argnums=(0, 1, 2)
        )(parameters, y, p)
        return forward, backward

    arrays = {name: jnp.asarray(value) for name, value in parameters.items()}
    forward, backward = slopes(arrays, jnp.asarray(y), jnp.asarray(p))
    for name in (*parameters, "y", "p"):
        point = parameters[name] if name in parameters else {"y": y, "p": p}[name]
        step = 1e-5 * np.maximum(np.abs(point), 1e-2) if name != "p" else 1e-6
        moved = []
        for sign in (1, -1):
            at = {name: point + sign * step}
            oracle = case.exact({**parameters, **{k: v for k, v in at.items() if k in parameters}})
            moved.append(expected(oracle, at.get("y", y), at.get("p", p)))
        for output, slope in forward[name].items():
            numeric = (moved[0][output] - moved[1][output]) / (2 * step)
            size = 1 + np.abs(moved[0][output])
            np.testing.assert_allclose(
                slope, numeric, rtol=rtol, atol=rtol * np.max(size), err_msg=f"{output}, {name}"
            )
        total = sum(forward[name].values())
        reverse = backward[0][name] if name in parameters else backward["yp".index(name) + 1]
        np.testing.assert_allclose(reverse, total, rtol=1e-9, atol=1e-9)


def check_normalization(case, seed=7):
    """The density integrates to one: Gauss-Legendre on 400 pieces between far quantiles."""
    parameters = case.parameters(seed, (4, 1))
    oracle, family = case.exact(parameters), case.make(parameters)
    x, w = np.polynomial.legendre.leggauss(8)
    grid = special.ndtr(np.linspace(-5.5, 5.5, 401))[:, None, None]
    ends = oracle.ppf(grid)  # [401, 4, 1]
    middle, half = 0.5 * (ends[1:] + ends[:-1]), 0.5 * (ends[1:] - ends[:-1])
    nodes = middle[..., None] + half[..., None] * x  # [400, 4, 1, 8]
    y = jnp.asarray(np.moveaxis(nodes, -1, 0))
    density = np.moveaxis(np.asarray(jnp.exp(family.marginal_log_prob(y))), 0, -1)
    total = np.sum(density * w * half[..., None], axis=(0, -1))
    np.testing.assert_allclose(total, 1 - 2 * special.ndtr(-5.5), rtol=1e-6)


def check_samples(case, count=8_000, tolerance=0.08):
    """Samples have the oracle's distribution, and their derivatives that of the mean."""
    parameters = case.parameters(8, (3, D))
    oracle, family = case.exact(parameters), case.make(parameters)
    key = jax.random.key(9)

    def draw(family):
        return family.sample(key, (count,))

    def average(family):
        return jnp.mean(draw(family), axis=0)

    def run(family):
        return jax.grad(lambda family: jnp.sum(average(family)))(family), draw(family)

    gradients, draws = jax.jit(run)(family)
    draws = np.asarray(draws)
    assert draws.shape == (count, 3, D)
    levels = oracle.cdf(draws)
    for index in np.ndindex(3, D):
        assert stats.kstest(levels[:, *index], "uniform").pvalue > 1e-3 / (3 * D)
    assert family.sample(key).dtype == family.dtype
    for name, value in parameters.items():
        step = 1e-4 * np.abs(value) + 1e-6
        above, below = (case.exact({**parameters, name: value + s * step}) for s in (1, -1))
        numeric = (above.mean() - below.mean()) / (2 * step)
        scale = oracle.std() if hasattr(oracle, "std") else np.sqrt(oracle.var())
        size = np.abs(numeric) + scale / np.abs(value)
        error = np.abs(np.asarray(getattr(gradients, name)) - numeric) / size
        assert np.max(error) < tolerance, (name, error)


def check_moments(case, mean, variance, rtol=1e-6, **constants):
    """``from_moments`` gives back the moments it was asked for."""
    mean, variance = (jnp.asarray(x, jnp.float64)[:, None] for x in (mean, variance))
    family = jax.jit(partial(case.family.from_moments, **constants))(mean, variance)
    np.testing.assert_allclose(family.mean(), mean, rtol=rtol)
    np.testing.assert_allclose(family.variance(), variance, rtol=rtol)


def mixture_of(case, seed, rows=8, dtype=np.float64):
    parameters = case.parameters(seed, (rows, K, D), dtype)
    logits = np.random.default_rng(seed + 100).normal(size=(rows, K)).astype(dtype)
    mixture = jaxmdn.Mixture(logits=jnp.asarray(logits), components=case.make(parameters))
    return mixture, special.softmax(logits.astype(np.float64), -1), case.exact(parameters)


def mixing(mixture, y, p, key, count):
    """What mixing adds, of three components over two dimensions; to be compiled as one."""
    rest = jaxmdn.condition(mixture, (1,), y[:, 1:])
    return {
        "log_prob": jaxmdn.log_prob(mixture, y),
        "vmap": jax.vmap(jaxmdn.log_prob)(mixture, y),
        "merge": jaxmdn.log_prob(jaxmdn.merge([mixture, mixture]), y),
        "marginal": jaxmdn.log_prob(jaxmdn.marginal(mixture, (1,)), y[:, 1:]),
        "conditional": jaxmdn.log_prob(rest, y[:, :1]),
        "cdf": jaxmdn.cdf(mixture, y),
        "quantile": jaxmdn.quantile(mixture, p),
        "sample": jaxmdn.sample(key, mixture, (count,)),
    }


def rearranged(mixture, y):
    """The log-density with the components in another order, and of the first alone."""
    order = jnp.array([2, 0, 1])
    swapped = jax.tree.map(lambda leaf: leaf[:, order], mixture)
    first = jax.tree.map(lambda leaf: leaf[:, :1], mixture)
    return {"swapped": jaxmdn.log_prob(swapped, y), "single": jaxmdn.log_prob(first, y)}


@jax.jit
def mix(mixture, y, p, key):
    """All functions of a mixture at once: one compilation for each family."""
    return mixing(mixture, y, p, key, 2000) | {"crps": jaxmdn.crps(mixture, y)}


def check_mixture(case):
    """What mixing adds, for three components over two dimensions."""
    rows = 4
    mixture, weights, oracle = mixture_of(case, 10, rows)
    rng = np.random.default_rng(11)
    inside = oracle.ppf(rng.uniform(0.05, 0.95, (rows, K, D)))
    y = np.take_along_axis(inside, rng.integers(K, size=(rows, 1, 1)), axis=1)[:, 0]  # [rows, D]
    p = rng.uniform(1e-4, 1 - 1e-4, (rows, D))
    found = mix(mixture, jnp.asarray(y), jnp.asarray(p), jax.random.key(12))

    def mixed(t):
        return np.sum(weights[..., None] * oracle.cdf(t[..., None, :]), axis=-2)

    each = oracle.logpdf(y[:, None])
    value = special.logsumexp(np.log(weights) + np.sum(each, -1), axis=-1)
    first = special.logsumexp(np.log(weights) + each[..., 1], axis=-1)
    exact = {"log_prob": value, "vmap": value, "merge": value, "marginal": first}
    exact |= {"conditional": value - first, "cdf": mixed(y)}
    for name, expectation in exact.items():
        np.testing.assert_allclose(found[name], expectation, rtol=1e-9, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(mixed(np.asarray(found["quantile"])), p, rtol=1e-9, atol=1e-12)
    level = mixed(np.asarray(found["sample"]))
    for index in np.ndindex(rows, D):
        assert stats.kstest(level[:, *index], "uniform").pvalue > 1e-3 / (rows * D)
    np.testing.assert_allclose(found["crps"], crps_of(mixed, oracle, y), rtol=2e-4)


def crps_of(mixed, oracle, y):
    """The integral of ``(F(t) - [t > y])^2``, between far quantiles of all components."""
    levels = special.ndtr(np.linspace(-6, 6, 301))[:, None, None, None]
    ends = oracle.ppf(levels)  # [L, rows, K, D]
    ends = np.sort(np.concatenate([*np.moveaxis(ends, 2, 0), y[None]]), axis=0)  # [L', rows, D]
    total = 0.0
    for node, weight in ((-np.sqrt(0.6), 5 / 18), (0.0, 8 / 18), (np.sqrt(0.6), 5 / 18)):
        t = 0.5 * (ends[1:] + ends[:-1]) + 0.5 * (ends[1:] - ends[:-1]) * node
        gap = mixed(t) - (t > y)
        total = total + weight * np.sum(gap**2 * np.diff(ends, axis=0), axis=0)
    return total


def check_outside(case, outside, middle):
    """No density, no slope and a flat cdf beyond the support; NaN is NaN."""
    parameters = {name: value[:1] for name, value in case.parameters(13, (N, 1)).items()}
    y = jnp.asarray([*outside, np.nan])[:, None]

    @jax.jit
    def run(parameters, y):
        def total(parameters, y):
            family = case.make(parameters)
            return jnp.sum(jnp.where(jnp.isnan(y), 0, family.cdf(y) + family.marginal_log_prob(y)))

        family = case.make(parameters)
        gradients = jax.grad(total, argnums=(0, 1))(parameters, y)
        return family.marginal_log_prob(y), family.cdf(y), family.survival(y), gradients

    arrays = {name: jnp.asarray(value) for name, value in parameters.items()}
    log_density, cdf, survival, gradients = run(arrays, y)
    np.testing.assert_array_equal(log_density[:-1], -np.inf)
    np.testing.assert_array_equal(cdf[:-1, 0], np.asarray(outside) > middle)
    np.testing.assert_array_equal(survival[:-1], 1 - cdf[:-1])
    for values in (log_density, cdf, survival):
        assert np.isnan(values[-1, 0])
    for leaf in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(leaf, 0)
    inside = case.make(arrays).in_support(y)
    assert inside.dtype == bool
    assert not bool(jnp.any(inside[: len(outside)]))


def compare(found, exact, size, label):
    """Both are within ``size`` of each other where they are finite, and equal elsewhere."""
    found, exact, size = np.broadcast_arrays(found, exact, size)
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(found[~finite], exact[~finite].astype(float), err_msg=label)
    error, size = np.abs(found[finite].astype(exact.dtype) - exact[finite]), size[finite]
    if not np.all(error <= size):
        worst = np.argmax(error / np.maximum(size, np.finfo(exact.dtype).tiny))
        raise AssertionError(
            f"{label}: {np.flatnonzero(finite)[worst]} is {found[finite][worst]}, not "
            f"{exact[finite][worst]}: {float(error[worst] / size[worst]):.3g} times what is allowed"
        )
