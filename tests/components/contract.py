"""What every family must do: one compiled program of all of it, fed by data, and its checks.

``check(case)`` runs the whole contract on a case, whose family may be any class, the user's own
included; ``CHECKS`` are its parts. Three programs are compiled for a family: ``evaluate`` in each
dtype (values, and slopes in every parameter and argument, of ``ROWS`` rows with parameters of their
own) and ``mix`` (what mixing adds, and samples). All else is NumPy on their outputs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle_continuous import bend, levels
from scipy import special, stats

import jaxmdn

ROWS, FEW, K, D = 64, 8, 3, 2  # rows of a run, of mixtures; components, dimensions
COUNT = 4000  # samples of each density
GRID = 3200  # targets at which a density is integrated
DTYPES = (np.float64, np.float32)
TAILS = ("cdf", "survival", "log_cdf", "log_survival")
KEY = 7


def rescaled(unit, **parameters):
    """Parameters of the same distribution in another unit."""
    powers = {"loc": 1, "scale": 1, "rate": -1}
    return {name: v * unit ** powers.get(name, 0) for name, v in parameters.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A family, how to draw its parameters, and the oracle of what they should give.

    ``units`` says how many rounding units of its size (see ``Exact``) an output may be off, and
    ``slope_units`` how many a slope of it; ``"any"`` stands for those not named. ``float32`` and
    ``slope_float32`` replace them there.
    """

    name: str
    family: Callable[..., Any]
    draw: Mapping[str, Callable[..., np.ndarray]]
    oracle: Any
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bounds: tuple[float, float] = (-np.inf, np.inf)
    outside: tuple[float, ...] = ()  # targets that the support leaves out, beside infinite ones
    closed: str = "affine"  # as the family's ``closure``
    kink: str | None = None  # the parameter where the density has one
    mean_of: Callable[..., Any] = lambda y, **_: y  # of samples, whose slopes are checked
    mixed: Mapping[str, Callable[..., np.ndarray]] | None = None  # parameters under mixtures
    rescale: Callable[..., Any] = rescaled
    moments: Callable[..., Any] | None = None  # a mean and a variance that the family can have
    from_moments: Callable[..., Any] | None = None  # as the family's own, with its constants
    recovered: tuple[float, float] = (1e-9, 1e-4)  # to within this of both, by dtype
    units: Mapping[str, float] = dataclasses.field(default_factory=dict)
    slope_units: Mapping[str, float] = dataclasses.field(default_factory=dict)
    float32: Mapping[str, float] = dataclasses.field(default_factory=dict)
    slope_float32: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def discrete(self):
        return self.oracle.lattice is not None

    @property
    def atom(self):
        """Whether there is a mass at zero beside a density."""
        return hasattr(self.oracle, "share")

    def parameters(self, seed, shape=(ROWS, 1), dtype=np.float64):
        rng = np.random.default_rng(seed)
        return {name: sampler(rng, shape).astype(dtype) for name, sampler in self.draw.items()}

    def make(self, parameters):
        return self.family(**parameters, **self.constants)

    def fit(self, mean, variance):
        make = self.from_moments or partial(self.family.from_moments, **self.constants)
        return make(mean, variance)

    def room(self, dtype, name):
        units = {"any": 20, **self.units, **(self.float32 if dtype == np.float32 else {})}
        return units.get(name, units["any"]) * float(np.finfo(dtype).eps)

    def slope_room(self, dtype, name):
        units = {"any": 40, "variance": 100, **self.slope_units}
        units |= self.slope_float32 if dtype == np.float32 else {}
        return units.get(name, units["any"]) * float(np.finfo(dtype).eps)


def exactly(parameters):
    return {name: np.asarray(value, np.float64) for name, value in parameters.items()}


def arrays(parameters):
    return {name: jnp.asarray(value) for name, value in parameters.items()}


# ------------------------------------------------------------------------------------ programs


def outputs(case, upper, parameters, y, p):
    family = case.make(parameters)
    found = {name: getattr(family, name)(y) for name in TAILS}
    found |= {"log_prob": family.marginal_log_prob(y), "quantile": family.tail_quantile(p, upper)}
    return found | {"mean": family.mean(), "variance": family.variance()}


@partial(jax.jit, static_argnums=0)
def evaluate(case, parameters, y, p, upper, moments, directions):
    """All elementwise functions, their slopes along every direction, and what goes with them.

    That is both tails in one, the support, jumps, and the member that has two given moments.

    In float64 also the gradient of the sum of all finite outputs, which is the slopes' sum, and
    second derivatives of the log-density along the directions, forward over reverse.
    """
    point = parameters, y, p

    values, change = jax.linearize(partial(outputs, case, upper), *point)
    slopes = jax.vmap(change)(*directions)
    family = case.make(parameters)
    beside = {"joint": family.log_prob(y), "tail": family.tail(y, upper)}
    beside |= {"inside": family.in_support(y), "covariance": family.covariance()[..., 0]}
    if case.moments:
        member = case.fit(*moments)
        beside["member"] = jax.tree.leaves(member), member.mean(), member.variance()
    if any(family.jumps):
        beside["before"], beside["at"] = family.jump(y)
    if y.dtype == jnp.float32:
        halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parameters)
        beside["half"] = case.make(halves).marginal_log_prob(y)
        return values, slopes, beside, (), ()

    def density(*point):
        value = case.make(point[0]).marginal_log_prob(point[1])
        return jnp.sum(jnp.where(jnp.isfinite(value), value, 0))

    def curved(direction):
        change = jax.jvp(jax.grad(density, argnums=(0, 1)), point[:2], direction[:2])[1]
        return sum(jax.tree.leaves(jax.tree.map(jnp.multiply, change, direction[:2])))

    finite_ones = {name: jnp.isfinite(v).astype(v.dtype) for name, v in values.items()}
    gradient = jax.linear_transpose(change, *point)(finite_ones)
    return values, slopes, beside, gradient, jax.vmap(curved)(directions)


def run(case, parameters, y, p=None, upper=None, extra=(), moments=None):
    """``evaluate`` on ``ROWS`` rows: values and slopes by name, and the rest, as NumPy arrays.

    ``extra`` are three directions for the second derivatives.
    """
    parameters, y = (jax.tree.map(lambda v: np.resize(v, (ROWS, 1)), x) for x in (parameters, y))
    p = np.full_like(y, 0.3) if p is None else np.resize(p, (ROWS, 1)).astype(y.dtype)
    upper = np.zeros(y.shape, bool) if upper is None else upper
    moments = [np.resize(v, (ROWS, 1)).astype(y.dtype) for v in moments or (0.5, 0.05)]
    point = {**parameters, "y": y, "p": p}
    rows = [{n: np.full_like(point[n], n == name) for n in point} for name in point]
    rows += [{n: np.zeros_like(v) for n, v in point.items()} | direction for direction in extra]
    rows += [rows[0]] * (len(point) + 3 - len(rows))
    stacked = {n: np.stack([row[n] for row in rows]).astype(y.dtype) for n in point}
    directions = {n: stacked[n] for n in parameters}, stacked["y"], stacked["p"]
    values, slopes, beside, gradient, curved = jax.tree.map(
        np.asarray, evaluate(case, parameters, y, p, upper, moments, directions)
    )
    slopes = {n: {key: v[i] for key, v in slopes.items()} for i, n in enumerate(point)}
    if len(gradient):
        gradient = {**gradient[0], "y": gradient[1], "p": gradient[2]}
    return values, slopes, beside, gradient, curved[len(point) :]


@partial(jax.jit, static_argnums=0)
def mix(case, mixture, other, y, p, key, moves, index, alone, grid):
    """What mixing adds, samples of the family itself and their slopes, the density on a grid."""
    found = {name: getattr(jaxmdn, name)(mixture, y) for name in ("log_prob", *TAILS)}
    found |= {"mean": jaxmdn.mean(mixture), "variance": jaxmdn.variance(mixture)}
    rest = jaxmdn.condition(mixture, (1,), y[:, 1:])
    order = jnp.array([2, 0, 1])
    swapped, first = (
        jaxmdn.Mixture(
            logits=mixture.logits[:, picked],
            components=mixture.components[:, picked],
        )
        for picked in (order, np.array([0]))
    )
    shift, scale = moves
    unmoved = case.closed == "none"  # no change of unit stays in the family
    moved = mixture if unmoved else mixture.affine(shift, scale)
    found |= {
        "vmap": jax.vmap(jaxmdn.log_prob)(mixture, y),
        "merge": jaxmdn.log_prob(jaxmdn.merge([mixture, other], jnp.array([0.3, 0.7])), y),
        "marginal": jaxmdn.log_prob(jaxmdn.marginal(mixture, (1,)), y[:, 1:]),
        "conditional": jaxmdn.log_prob(rest, y[:, :1]),
        "swapped": jaxmdn.log_prob(swapped, y),
        "single": jaxmdn.log_prob(first, y),
        "rows": jaxmdn.log_prob(mixture[np.array([5, 2])], y[np.array([5, 2])]),
        "taken": mixture.components.take(index).log_prob(y),
        "moved": jaxmdn.log_prob(moved, shift + scale * y),
        "quantile": jaxmdn.quantile(mixture, p),
        "sample": jaxmdn.sample(key, mixture, COUNT),
        "grid": jnp.exp(case.make(grid[0]).marginal_log_prob(grid[1])),
    }

    def total(mixture):
        return jnp.sum(jaxmdn.log_prob(mixture, y)) + jnp.sum(jaxmdn.log_cdf(mixture, y))

    def average(parameters):
        draws = case.make(parameters).sample(key, (COUNT,))
        return jnp.sum(
            jnp.mean(case.mean_of(draws, **jax.lax.stop_gradient(parameters)), axis=0)
        ), draws

    found["gradient"] = jax.grad(total)(mixture)
    found["alone_slopes"], found["alone"] = jax.grad(average, has_aux=True)(alone)
    if case.discrete and case.oracle.lattice == (0.0, 1.0):
        found["integers"] = jaxmdn.log_prob(mixture, y.astype(jnp.int32))
    if any(mixture.jumps):
        found["pit"] = jaxmdn.pit(mixture, found["sample"], key=key)
    return found | {"crps": jaxmdn.crps(mixture, y)}


# -------------------------------------------------------------------------------- elementwise


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


@functools.cache
def typical(case, dtype):
    """A run at random parameters and targets, and what the oracle says of it."""
    parameters, rng = case.parameters(1, dtype=dtype), np.random.default_rng(2)
    # Of 1 - p, float32 sees 1e-7: a step of a count would be another's.
    least = 1e-3 if case.discrete and dtype == np.float32 else 1e-6
    p = levels(rng, (ROWS, 1), least).astype(dtype)
    y = np.asarray(case.oracle.quantile(exactly(parameters), levels(rng, (ROWS, 1))), dtype)
    exact = case.oracle.exact(exactly(parameters), y.astype(np.float64))
    extra = [mixed_direction(case, rng, exactly(parameters), y, exact) for _ in range(3)]
    upper = rng.random((ROWS, 1)) < 0.5
    if not case.discrete:  # so far up that one minus it is one
        p = np.where(upper & (p < 0.01), p**3, p)
    return parameters, y, p, upper, extra, exact, run(case, parameters, y, p, upper, extra)


def mixed_direction(case, rng, parameters, y, exact):
    """A random direction, short enough that the log-density is analytic around it."""
    direction = {}
    for name, value in {**parameters, "y": y}.items():
        step = 1 / np.maximum(exact.natural[name], 1e-3)
        if name == "y":
            step = np.minimum(step, np.minimum(y - case.bounds[0], case.bounds[1] - y))
        else:  # a logit's share has poles pi away from the real line; the others are positive
            longest = {"loc": parameters.get("scale", 1), "logit": 4}.get(name, value)
            step = np.minimum(step, longest)
        if case.kink and name in ("y", case.kink):
            step = np.minimum(step, np.abs(y - parameters[case.kink]))
        direction[name] = 0.25 * rng.uniform(-1, 1, y.shape) * step
    return direction


def check_values(case, dtype):
    """Every function of a target, and the moments."""
    parameters, y, _, upper, _, exact, (values, _, beside, _, _) = typical(case, dtype)
    for name, value in exact.values.items():
        assert values[name].dtype == dtype, name
        size = case.room(dtype, name) * exact.value_sizes[name] + np.finfo(dtype).tiny
        compare(values[name], value, size, name)
    near = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(beside["joint"], values["log_prob"][:, 0], rtol=near, atol=near)
    # Evaluated twice, and not always fused alike.
    np.testing.assert_allclose(beside["covariance"], values["variance"], rtol=near)
    tail = np.where(upper, values["survival"], values["cdf"])
    np.testing.assert_allclose(beside["tail"], tail, rtol=4 * np.finfo(dtype).eps)
    assert beside["inside"].all()
    if dtype == np.float32:  # bfloat16 parameters are rounded once, and computed in float32
        halves = {name: v.astype(jnp.bfloat16) for name, v in parameters.items()}
        assert beside["half"].dtype == np.float32
        rounded = exactly(halves)
        value = case.oracle.exact(rounded, y.astype(np.float64))
        size = case.room(dtype, "log_prob") * value.value_sizes["log_prob"]
        compare(beside["half"], value.values["log_prob"], size, "of bfloat16")


def check_slopes(case, dtype):
    """Slopes in every parameter and in ``y``, forward and backward; second derivatives."""
    parameters, y, _, _, extra, exact, found = typical(case, dtype)
    _, slopes, _, gradient, curved = found
    for parameter, by_output in exact.slopes.items():
        for name, value in by_output.items():
            assert slopes[parameter][name].dtype == dtype
            size = case.slope_room(dtype, name) * exact.slope_sizes[parameter][name]
            compare(slopes[parameter][name], value, size, f"{name} in {parameter}")
    for name, total in dict(gradient).items():
        parts = {k: np.where(np.isfinite(found[0][k]), v, 0) for k, v in slopes[name].items()}
        size = (
            case.slope_units.get("gradient", 200)
            * np.finfo(dtype).eps
            * sum(map(np.abs, parts.values()))
            + 1e-300
        )
        for output, own in exact.slope_sizes.get(name, {}).items():
            size = size + case.slope_room(dtype, output) * own
        compare(total, sum(parts.values()), size, f"gradient in {name}")
    steep = np.abs(exact.values["log_prob"])
    for direction, value in zip(extra, curved, strict=False):
        expected = bend(case.oracle.near(exactly(parameters), y), y, exactly(parameters), direction)
        compare(value, expected, case.slope_room(dtype, "curved") * (1 + steep), "curved")


def check_quantiles(case, dtype):
    """The oracle's distribution function takes every quantile back to its probability."""
    parameters, _, p, upper, _, _, (values, slopes, _, _, _) = typical(case, dtype)
    if case.discrete:
        check_steps(case, dtype)
        return
    found, p = values["quantile"], p.astype(np.float64)
    inner = ~np.isin(found, np.asarray(case.bounds, dtype))
    at = case.oracle.exact(exactly(parameters), found.astype(np.float64))
    below, above = np.where(upper, 1 - p, p), np.where(upper, p, 1 - p)
    for name, level in (("cdf", below), ("survival", above)):
        size = case.room(dtype, "quantile") * at.value_sizes[name]
        eps = np.finfo(dtype).eps  # of the quantile's own last place, and of a level's
        size = size + 4 * eps * np.abs(found) * np.exp(at.values["log_prob"])
        size = size + case.units.get("level", 0) * eps
        # The larger tail holds no more than the smaller one; a bound itself is next to all.
        near = (level < 0.6) & inner
        if case.atom:
            zero = found == 0
            before = case.oracle.cdf(exactly(parameters), np.full(found.shape, -1e-300))
            jump = before, case.oracle.cdf(exactly(parameters), np.zeros(found.shape))
            assert np.all((jump[0] - eps <= below) & (below <= jump[1] + eps) | ~zero)
            near = near & ~zero
        compare(at.values[name][near], level[near], size[near], f"{name} of the quantile")
    density = np.exp(at.values["log_prob"])
    expected = {name: -by["cdf"] / density for name, by in at.slopes.items() if name != "y"}
    expected["p"] = np.where(upper, -1, 1) / density
    if case.atom:
        expected = {name: np.where(zero, 0, value) for name, value in expected.items()}
    for name, value in expected.items():
        size = at.slope_sizes.get(name, at.slope_sizes["y"])["cdf"] / density
        size = size if name != "p" else np.abs(value) * at.value_sizes["log_prob"]
        size = case.slope_room(dtype, "quantile") * size
        value = np.where(inner, value, slopes[name]["quantile"])  # rounded to a bound: no slope
        size = np.where(inner, size, np.inf)
        compare(slopes[name]["quantile"], value, size, f"quantile in {name}")


def check_steps(case, dtype):
    """The smallest value that reaches a level, also one that is a step's own."""
    parameters, y, p, upper, _, exact, (values, slopes, *_) = typical(case, dtype)
    below = np.where(upper, 1 - p.astype(np.float64), p)
    expected = case.oracle.quantile(exactly(parameters), below)
    np.testing.assert_array_equal(values["quantile"], expected)
    step = exact.values["cdf"]
    moved = sum(np.abs(v * exact.slopes[x]["cdf"]) for x, v in parameters.items())
    own = (np.abs(step - 0.5) < 0.499) & (moved < 8 * step)  # by few rounding units
    step = np.where(own, step, 0)
    assert np.sum(own) >= 8
    found = run(case, parameters, y, step.astype(dtype))[0]["quantile"]
    np.testing.assert_array_equal(found[step > 0], y[step > 0])
    for by_output in slopes.values():
        np.testing.assert_array_equal(by_output["quantile"], 0)


def check_edges(case, dtype):
    """Infinite targets, those outside the support, NaN; probabilities 0, 1, outside, NaN."""
    parameters = case.parameters(3, dtype=dtype)
    outside = np.array(case.outside, dtype)
    outside = outside[outside != 0]  # -1e-300 is zero in float32
    y = np.array([*outside, -np.inf, np.inf, np.nan], dtype)
    p = np.array([0, 1, -0.1, 1.1, np.nan])
    y, p = (np.resize(v, (ROWS, 1)).astype(dtype) for v in (y, p))
    upper = np.arange(ROWS)[:, None] >= ROWS // 2
    values, slopes, beside, gradient, _ = run(case, parameters, y, p, upper)
    nan, beyond = np.isnan(y), ~np.isfinite(y)
    np.testing.assert_array_equal(values["log_prob"][~nan], -np.inf)
    for name in ("log_prob", *TAILS):
        np.testing.assert_array_equal(np.isnan(values[name]), nan, err_msg=name)
    whole = np.where(nan, 0, y).astype(np.float64)
    with np.errstate(all="ignore"):
        below = case.oracle.cdf(exactly(parameters), whole)
        if case.discrete:
            below = case.oracle.exact(exactly(parameters), whole).values["cdf"].astype(float)
    below = below[~nan]
    room = 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(values["cdf"][~nan], below, rtol=room, atol=room)
    np.testing.assert_allclose(values["survival"][~nan], 1 - below, rtol=room, atol=room)
    np.testing.assert_array_equal(values["cdf"][beyond & ~nan], y[beyond & ~nan] > 0)
    with np.errstate(divide="ignore"):
        for name in ("cdf", "survival"):
            some = (values[name] > np.finfo(dtype).tiny) | np.isin(y, (-np.inf, np.inf))
            log = np.log(values[name].astype(np.float64))
            log, found = log[some], values[f"log_{name}"][some]
            np.testing.assert_allclose(found, log, rtol=room, atol=room)
    last = np.where((p == 1) != upper, case.bounds[1], case.bounds[0])
    ends = np.where(np.isin(p, (0, 1)), last, np.nan).astype(dtype)
    if case.atom:  # what is left above zero may round away
        full = case.oracle.cdf(exactly(parameters), np.zeros(p.shape)) > 1 - np.finfo(dtype).eps
        ends[(p == 1) & ~upper & full] = 0
    np.testing.assert_array_equal(values["quantile"], ends)
    assert beside["inside"].dtype == bool
    assert not beside["inside"].any()
    if len(outside):
        out = np.isin(y, outside)
        for parameter, by_output in slopes.items():
            for name in ("log_prob", *(() if case.discrete or case.atom else TAILS)):
                np.testing.assert_array_equal(
                    by_output[name][out], 0, err_msg=f"{name} {parameter}"
                )
        for name, total in dict(gradient).items():
            assert np.all(np.isfinite(total[~nan & ~np.isnan(p)])), name


def check_units(case, dtype):
    """Tiny and huge units: the same numbers, but for the logarithm of the unit."""
    if case.closed == "none":
        return
    parameters, rng = case.parameters(4), np.random.default_rng(5)
    unit = 10 ** rng.uniform(*((-30, 30) if dtype == np.float64 else (-9, 9)), (ROWS, 1))
    moved = {n: v.astype(dtype) for n, v in case.rescale(unit, **parameters).items()}
    y = np.asarray(case.oracle.quantile(exactly(moved), levels(rng, (ROWS, 1))), dtype)
    values, slopes, *_ = run(case, moved, y)
    exact = case.oracle.exact(exactly(moved), y.astype(np.float64))
    for name in ("log_prob", *TAILS):
        compare(
            values[name], exact.values[name], case.room(dtype, name) * exact.value_sizes[name], name
        )
        for parameter, by_output in exact.slopes.items():
            size = case.slope_room(dtype, name) * exact.slope_sizes[parameter][name]
            compare(slopes[parameter][name], by_output[name], size, f"{name} in {parameter}")


def check_moments(case, dtype):
    """``from_moments`` gives back the moments it was asked for."""
    if not case.moments:
        return
    moments = [v.astype(dtype) for v in case.moments(np.random.default_rng(14), (ROWS, 1))]
    parameters, y = typical(case, dtype)[:2]
    leaves, mean, variance = run(case, parameters, y, moments=moments)[2]["member"]
    rtol = case.recovered[dtype == np.float32]
    assert {leaf.dtype for leaf in leaves} == {np.dtype(dtype)}
    np.testing.assert_allclose(mean, moments[0], rtol=rtol)
    np.testing.assert_allclose(variance, moments[1], rtol=rtol)


# ------------------------------------------------------------------------- mixtures and samples


def mixture_of(case, logits, parameters):
    components = case.make(arrays(parameters))
    return jaxmdn.Mixture(logits=jnp.asarray(logits), components=components)


def drawn(case, rng, count):
    """Parameters of mixtures, some of them shared, and their logits."""
    shapes = (count, K, D), (count, 1, D), (count, K, 1)
    pairs = zip((case.mixed or case.draw).items(), shapes, strict=False)
    parameters = {name: sampler(rng, shape) for (name, sampler), shape in pairs}
    return parameters, rng.normal(size=(count, K))


@functools.cache
def mixed(case, seed, dead):
    """A mixture, some of whose parameters are shared, everything of it, and its oracle's parts."""
    rng = np.random.default_rng(seed)
    draw = case.mixed or case.draw
    parameters, logits = drawn(case, rng, FEW)
    if dead:
        logits[:, -1] = -np.inf
    more = {name: sampler(rng, (FEW, 2, D)) for name, sampler in draw.items()}
    others = rng.normal(size=(FEW, 2))
    mixture, other = mixture_of(case, logits, parameters), mixture_of(case, others, more)
    each = case.oracle.quantile(parameters, rng.uniform(0.02, 0.98, (FEW, K, D)))
    y = np.take_along_axis(each, rng.integers(2, size=(FEW, 1, 1)), axis=1)[:, 0]  # [FEW, D]
    p = rng.uniform(1e-4, 1 - 1e-4, (FEW, D))
    shift = np.array([1.0, -0.5]) * (case.closed == "affine")
    scale = {"affine": np.array([2.0, -3.0]), "scale": np.array([2.5, 0.7])}.get(case.closed)
    moves = shift, np.ones(D) if scale is None else scale
    index = rng.integers(K, size=FEW)
    alone = {name: sampler(rng, (3, D)) for name, sampler in draw.items()}
    coarse = {name: sampler(rng, (1, 2)) for name, sampler in draw.items()}
    grid = coarse, integration(case, coarse)[0]
    key = jax.random.key(seed)
    found = jax.tree.map(
        np.asarray, mix(case, mixture, other, y, p, key, moves, index, alone, grid)
    )
    return (
        (parameters, logits, more, others),
        (y, p, moves, index, alone, coarse),
        found,
    )


def integration(case, parameters):
    """Targets ``[GRID, 2]`` and weights of an integral over nearly all of the distribution."""
    if hasattr(case.oracle, "integration"):
        return case.oracle.integration(parameters, GRID)
    if case.discrete:
        y = case.oracle.lattice[0] + case.oracle.lattice[1] * np.arange(GRID)
        return np.stack([y, y], axis=1), np.ones((GRID, 1))
    oracle = case.oracle
    if case.atom:
        parameters, oracle = oracle.parts(parameters)[0], oracle.base
    ends = oracle.quantile(parameters, special.ndtr(np.linspace(-5.5, 5.5, 401))[:, None])
    x, w = np.polynomial.legendre.leggauss(8)
    half = 0.5 * np.diff(ends, axis=0)[:, None]
    y = 0.5 * (ends[1:] + ends[:-1])[:, None] + half * x[:, None]
    return y.reshape(GRID, 2), (half * w[:, None]).reshape(GRID, 2)


def weighted(logits, values):
    weights = special.softmax(logits, axis=-1)[..., None]
    with np.errstate(invalid="ignore"):
        return np.sum(np.where(weights > 0, weights * values, 0), axis=-2)  # nothing, were it NaN


def joint(case, parameters, logits, y, dims=(0, 1)):
    """The mixture's log-density of some dimensions, by the oracle's components."""
    each = case.oracle.log_prob(parameters, y[..., None, :])
    return special.logsumexp(special.log_softmax(logits, -1) + np.sum(each[..., dims], -1), axis=-1)


def check_mixing(case, dtype=np.float64, dead=False):
    """Densities, tails, moments, marginals, conditionals, orders, merging, units of a mixture."""
    (parameters, logits, more, others), data, found = mixed(case, 10, dead)
    y, _, (_, scale), index, _, _ = data
    value, second = (joint(case, parameters, logits, y, dims) for dims in ((0, 1), (1,)))
    each = np.sum(case.oracle.log_prob(parameters, y[:, None]), axis=-1)
    pair = np.stack([value, joint(case, more, others, y)])
    expected = dict.fromkeys(("log_prob", "vmap", "swapped"), value)
    expected |= {"marginal": second, "conditional": value - second, "rows": value[[5, 2]]}
    expected |= {"single": each[:, 0], "taken": np.take_along_axis(each, index[:, None], 1)[:, 0]}
    expected["merge"] = special.logsumexp(pair, axis=0, b=np.array([[0.3], [0.7]]))
    dense = y != 0 if case.atom else np.ones_like(y)  # a mass at zero is one in any unit
    expected["moved"] = value - np.sum(dense * np.log(np.abs(scale)), axis=-1)
    if "integers" in found:
        expected["integers"] = value
    cdf = weighted(logits, case.oracle.cdf(parameters, y[:, None]))
    expected |= {"cdf": cdf, "survival": 1 - cdf}
    with np.errstate(divide="ignore"):
        expected |= {"log_cdf": np.log(cdf), "log_survival": np.log(1 - cdf)}
    for name, exact in expected.items():
        # Logarithms of what is left of one minus the oracle's cdf have no digits.
        some = exact > np.log(1e-7) if name in TAILS and "log" in name else np.isfinite(exact)
        found_, exact = found[name][some], exact[some]
        np.testing.assert_allclose(found_, exact, rtol=1e-9, atol=1e-9, err_msg=name)
    full = {n: np.broadcast_to(v, (FEW, K, D)).reshape(-1, 1) for n, v in parameters.items()}
    own = case.oracle.exact(full, np.broadcast_to(y[:, None], (FEW, K, D)).reshape(-1, 1)).values
    mean, variance = (np.asarray(own[n], float).reshape(FEW, K, D) for n in ("mean", "variance"))
    total = weighted(logits, mean)
    spread = weighted(logits, variance + (mean - total[:, None]) ** 2)
    np.testing.assert_allclose(found["mean"], total, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found["variance"], spread, rtol=1e-9)
    for leaf in jax.tree.leaves(found["gradient"]):
        assert np.isfinite(leaf).all()
    if dead:
        np.testing.assert_array_equal(found["gradient"].logits[:, -1], 0)
        for leaf in jax.tree.leaves(found["gradient"].components):
            if leaf.shape[1] == K:
                np.testing.assert_array_equal(leaf[:, -1], 0)


def check_dead_component(case, dtype=np.float64):
    """A weight of zero: the others' numbers, and no gradient in what it weighs."""
    check_mixing(case, dead=True)


def check_mixed_quantiles(case, dtype=np.float64):
    """The oracle's distribution function takes the quantiles of a mixture back."""
    (parameters, logits, _, _), (_, p, *_), found = mixed(case, 10, False)
    take_back(case, parameters, logits, p, found["quantile"])


def check_random_quantiles(case, count=1000):
    """The same of many mixtures."""
    rng = np.random.default_rng(20)
    parameters, logits = drawn(case, rng, count)
    p = rng.uniform(1e-4, 1 - 1e-4, (count, D))
    found = jax.jit(jaxmdn.quantile)(mixture_of(case, logits, parameters), p)
    take_back(case, parameters, logits, p, np.asarray(found))


def take_back(case, parameters, logits, p, found):
    reached = weighted(logits, case.oracle.cdf(parameters, found[:, None]))
    if not (case.discrete or case.atom):
        np.testing.assert_allclose(reached, p, rtol=1e-9, atol=1e-11)
        return
    # The smallest value with cdf >= p.
    last = case.oracle.before(found)
    before = weighted(logits, case.oracle.cdf(parameters, last[:, None]))
    assert np.all(reached >= p * (1 - 1e-9))
    assert np.all(before <= p * (1 + 1e-9))


def uniform(case, cdf, draws, rng):
    """The probabilities of draws, randomised over jumps: uniform numbers if all is well."""
    at = cdf(draws)
    below = cdf(case.oracle.before(draws)) if hasattr(case.oracle, "before") else at
    assert np.all(at >= below)
    return below, at, below + rng.random(draws.shape) * (at - below)


def check_samples(case, dtype=np.float64):
    """Kolmogorov and Smirnov's test of the mixture's and the family's samples; their slopes."""
    (parameters, logits, _, _), (_, _, _, _, alone, _), found = mixed(case, 10, False)
    rng = np.random.default_rng(13)
    draws = found["sample"]
    assert draws.shape == (COUNT, FEW, D)
    below, at, level = uniform(
        case, lambda y: weighted(logits, case.oracle.cdf(parameters, y[..., None, :])), draws, rng
    )
    own = uniform(case, lambda y: case.oracle.cdf(alone, y), found["alone"], rng)[2]
    if "pit" in found:  # the library's own transform, with its own random numbers
        assert np.all((found["pit"] >= below - 1e-9) & (found["pit"] <= at + 1e-9))
        level = np.concatenate([level, found["pit"]], axis=1)
    for values in (level, own):
        count = values[0].size
        for index in np.ndindex(values.shape[1:]):
            assert stats.kstest(values[:, *index], "uniform").pvalue > 1e-3 / count
    if case.discrete:
        return
    flat = {name: v.reshape(-1, 1) for name, v in alone.items()}
    exact = case.oracle.exact(flat, case.oracle.quantile(flat, np.full((3 * D, 1), 0.4)))
    for name, value in flat.items():
        slope = exact.slopes[name]["mean"]
        if case.mean_of:
            continue
        size = np.abs(slope) + np.sqrt(exact.values["variance"]) / np.abs(value)
        error = np.abs(found["alone_slopes"][name].reshape(-1, 1) - slope) / size
        assert np.max(error) < 0.08, (name, error)


def check_integral(case, dtype=np.float64):
    """The density integrates (the probabilities add up) to one."""
    _, (*_, coarse), found = mixed(case, 10, False)
    _, weights = integration(case, coarse)
    whole = 1.0 if case.discrete else 1 - 2 * special.ndtr(-5.5)
    whole = whole * case.oracle.share(coarse)[0] if case.atom else whole
    np.testing.assert_allclose(np.sum(found["grid"] * weights, axis=0), whole, rtol=1e-6)


def check_crps(case, dtype=np.float64):
    """The integral of ``(F(t) - [t > y])^2``, or its sum over a lattice, by the oracle's cdf."""
    (parameters, logits, _, _), (y, *_), found = mixed(case, 10, False)
    rows = np.broadcast_to(y, (FEW, D))
    if case.discrete:
        first, step = case.oracle.lattice
        last = np.max(case.oracle.quantile(parameters, 1 - 1e-12)) + step
        t = first + step * np.arange(round((last - first) / step))[:, None, None]
        below = weighted(logits, case.oracle.cdf(parameters, (t + 0 * rows)[:, :, None]))
        total = step * np.sum((below - (t > rows - step / 2)) ** 2, axis=0)
    else:
        total = crps_integral(case, parameters, logits, rows)
    np.testing.assert_allclose(found["crps"], total, rtol=1e-5, atol=1e-9)


def crps_integral(case, parameters, logits, y):
    """By panels between far quantiles of all components, the target, cusps and masses."""
    scores = np.linspace(-7, 7, 801)[:, None, None, None]
    ends = case.oracle.quantile(parameters, special.ndtr(scores))  # [L, FEW, K, D]
    cuts = [*np.moveaxis(ends, 2, 0), y[None]]
    if case.atom:
        cuts.append(0 * y[None])
    if case.kink:
        cuts.append(np.moveaxis(np.broadcast_to(parameters[case.kink], ends.shape[1:]), 1, 0))
    if case.name == "von-mises":
        cuts.append(np.multiply.outer(np.linspace(-np.pi, np.pi, 401), np.ones_like(y)))
    ends, total = np.sort(np.concatenate(cuts), axis=0), 0.0
    for node, weight in zip(*np.polynomial.legendre.leggauss(4), strict=True):
        t = 0.5 * (ends[1:] + ends[:-1]) + 0.5 * (ends[1:] - ends[:-1]) * node
        gap = weighted(logits, case.oracle.cdf(parameters, t[..., None, :])) - (t > y)
        total = total + 0.5 * weight * np.sum(gap**2 * np.diff(ends, axis=0), axis=0)
    return total


def check_types(case, dtype=np.float64):
    """Samples have the parameters' dtype, whatever it is; nothing is compiled to see it."""
    for kind in (np.float64, np.float32, jnp.bfloat16):
        drawn = case.parameters(0, (2, 1)).items()
        family = case.make({n: jnp.asarray(v.astype(kind)) for n, v in drawn})
        draws = jax.eval_shape(lambda family: family.sample(jax.random.key(0), (5,)), family)
        assert draws.shape == (5, 2, 1)
        half = kind == jnp.bfloat16 and case.discrete  # too few whole numbers
        assert draws.dtype == (jnp.float32 if half else kind)
        assert jax.eval_shape(lambda family: family.mean(), family).dtype == kind
        assert family.closure == (case.closed,)
        if case.closed == "none":
            with pytest.raises(TypeError, match="affine: "):
                family.affine(jnp.zeros(1), jnp.ones(1))


ELEMENTWISE = (check_values, check_slopes, check_quantiles, check_edges, check_units, check_moments)
MIXING = (
    check_mixing,
    check_dead_component,
    check_mixed_quantiles,
    check_samples,
    check_integral,
    check_crps,
    check_types,
)
CHECKS = [(check, dtype) for check in ELEMENTWISE for dtype in DTYPES]
CHECKS += [(check, np.float64) for check in MIXING]


def check(case):
    """The whole contract."""
    for part, dtype in CHECKS:
        part(case, dtype)
