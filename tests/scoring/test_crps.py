"""The CRPS against closed forms, scoringrules, the integral it is defined by, and mpmath."""

import itertools

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import mp
from scipy import integrate, special, stats

import jaxmdn
from jaxmdn import components
from jaxmdn.components import (
    AsymmetricLaplace,
    Bernoulli,
    Gamma,
    Hurdle,
    Laplace,
    Logistic,
    Normal,
    Poisson,
    StudentT,
    TruncatedNormal,
)
from jaxmdn.components.declare import family, real
from jaxmdn.components.univariate import Univariate
from jaxmdn.scoring import quantile_crps
from jaxmdn.typing import Parameter

FAMILIES = {"normal": Normal, "laplace": Laplace, "logistic": Logistic, "student": StudentT}
SCIPY = {
    "normal": stats.norm,
    "laplace": stats.laplace,
    "logistic": stats.logistic,
    "student": stats.t,
}
every_family = pytest.mark.parametrize("name", FAMILIES)


def draw(name, rng, K, batch=(), spread=2.0):
    """Logits and univariate parameters ``[..., K]`` by NumPy."""
    parameters = {
        "loc": spread * rng.normal(size=(*batch, K)),
        "scale": np.exp(rng.normal(size=(*batch, K))),
    }
    if name == "student":
        parameters["df"] = np.exp(rng.uniform(np.log(1.5), np.log(30.0), (*batch, K)))
    return rng.normal(size=(*batch, K)), parameters


def build(name, logits, parameters, dtype=np.float64):
    cast = {key: jnp.asarray(x, dtype)[..., None] for key, x in parameters.items()}
    return jaxmdn.Mixture(logits=jnp.asarray(logits, dtype), components=FAMILIES[name](**cast))


def frozen(name, parameters):
    shape = {"df": parameters["df"]} if name == "student" else {}
    return SCIPY[name](loc=parameters["loc"], scale=parameters["scale"], **shape)


def closed_form(name, y, parameters):
    """One component by the package scoringrules."""
    loc, scale = parameters["loc"], parameters["scale"]
    if name == "student":
        return scoringrules.crps_t(y, parameters["df"], loc, scale)
    return getattr(scoringrules, f"crps_{name}")(y, loc, scale)


def crps_integral(weights, family, loc, scale, y, reach=100.0):
    """``int (F(t) - 1[t >= y])^2 dt``, cut where the components change and at y."""

    def below(u):
        return np.sum(weights * family.cdf(np.sinh(u))) ** 2 * np.cosh(u)

    def above(u):
        return np.sum(weights * family.sf(np.sinh(u))) ** 2 * np.cosh(u)

    points = np.concatenate([loc, loc - 3 * scale, loc + 3 * scale])
    total = 0.0
    for function, ends in ((below, (-reach, np.arcsinh(y))), (above, (np.arcsinh(y), reach))):
        breaks = [*np.arcsinh(points), -0.3 * reach, 0.3 * reach]
        cuts = np.sort([*ends, *(x for x in breaks if ends[0] < x < ends[1])])
        for low, high in itertools.pairwise(cuts):
            total += integrate.quad(function, low, high, epsabs=1e-12, epsrel=1e-10, limit=200)[0]
    return total


@every_family
def test_one_component_is_the_closed_form(name):
    rng = np.random.default_rng(0)
    _, parameters = draw(name, rng, 1, (40,))
    y = parameters["loc"] + parameters["scale"] * np.concatenate(
        [4.0 * rng.normal(size=(38, 1)), [[1e4], [0.0]]]
    )
    exact = closed_form(name, y, parameters)
    mixture = build(name, np.zeros((40, 1)), parameters)
    np.testing.assert_allclose(jaxmdn.crps(mixture, jnp.asarray(y)), exact, rtol=1e-11)
    # float32, 1e4 scales away included: a few units of the last place. Where y is the median the
    # score is a third of the numbers that it is the difference of.
    low = build(name, np.zeros((40, 1)), parameters, np.float32)
    rounded = {key: np.float64(np.float32(x)) for key, x in parameters.items()}
    found = jaxmdn.crps(low, jnp.asarray(y, np.float32))
    assert found.dtype == np.float32
    exact = closed_form(name, np.float64(np.float32(y)), rounded)
    np.testing.assert_allclose(found, exact, rtol=5e-6)


@pytest.mark.optimised
@every_family
def test_mixtures_are_the_integral_of_the_squared_difference(name):
    rng = np.random.default_rng(1)
    for K, count in ((2, 3), (3, 3), (4, 2)):  # an even and an odd number of pairs
        logits, parameters = draw(name, rng, K, (count,))
        y = 3.0 * rng.normal(size=(count, 1))
        found = jaxmdn.crps(build(name, logits, parameters), jnp.asarray(y))[:, 0]
        for n in range(count):
            row = {key: x[n] for key, x in parameters.items()}
            exact = crps_integral(
                special.softmax(logits[n]), frozen(name, row), row["loc"], row["scale"], y[n, 0]
            )
            np.testing.assert_allclose(found[n], exact, rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_normal_mixtures_against_scoringrules(seed):
    # Twenty mixtures an example, a thousand in all.
    rng = np.random.default_rng(seed)
    logits, parameters = draw("normal", rng, 5, (20,), spread=rng.choice([0.01, 1.0, 100.0]))
    y = parameters["loc"][:, 0] + 10.0 * rng.normal(size=20)
    weights = special.softmax(logits, axis=-1)
    exact = scoringrules.crps_mixnorm(y, parameters["loc"], parameters["scale"], weights)
    found = jaxmdn.crps(build("normal", logits, parameters), jnp.asarray(y[:, None]))[:, 0]
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    low = jaxmdn.crps(
        build("normal", logits, parameters, np.float32), jnp.asarray(y[:, None], np.float32)
    )
    # In float32 the difference of two means of the size of the spread is left.
    size = np.abs(y) + np.max(np.abs(parameters["loc"]), axis=-1)
    assert np.all(np.abs(np.float64(low[:, 0]) - exact) <= 1e-5 * (exact + size))


def exact_laplace(distance, b, c):
    """``E|Y - Y'|`` in 80 digits; equal scales as a limit."""
    d, b, c = mp.mpf(distance), mp.mpf(b), mp.mpf(c)
    if b == c:
        b = b * (1 + mp.mpf("1e-30"))
    return d + (b**3 * mp.exp(-d / b) - c**3 * mp.exp(-d / c)) / (b * b - c * c)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_laplace_pairs_through_equal_scales(dtype):
    ratios = [1.0, 1.0 + 1e-7, 1.0 + 1e-5, 1.001, 1.3, 30.0, 1e6, 1e-3]
    cases = np.array([(d, b) for b in ratios for d in (0.0, 1e-3, 1.0, 5.0, 1e4)]).astype(dtype)
    distance, scale = (jnp.asarray(x) for x in cases.T)

    def pair(distance, scale):
        first = Laplace(loc=distance[:, None], scale=scale[:, None])
        second = Laplace(loc=jnp.zeros_like(first.loc), scale=jnp.ones_like(first.loc))
        return first.mean_difference(second)[:, 0]

    one = jnp.ones_like(distance)
    found = jax.jit(
        lambda d, b: (
            pair(d, b),
            jax.jvp(lambda d: pair(d, b), (d,), (one,))[1],
            jax.jvp(lambda b: pair(d, b), (b,), (one,))[1],
        )
    )(distance, scale)
    step = mp.mpf("1e-20")
    exact = []
    for d, b in np.float64(cases):
        in_loc = (exact_laplace(d + step, b, 1) - exact_laplace(abs(d - step), b, 1)) / (2 * step)
        wide, narrow = mp.mpf(b) + mp.mpf("1e-9"), mp.mpf(b) - mp.mpf("1e-9")
        in_scale = (exact_laplace(d, wide, 1) - exact_laplace(d, narrow, 1)) / mp.mpf("2e-9")
        exact.append([float(x) for x in (exact_laplace(d, b, 1), in_loc, in_scale)])
    # 1 - exp(-small): an absolute error of a few units of the last place.
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(np.stack(found, axis=-1), exact, rtol=8 * eps + 1e-12, atol=8 * eps)


def exact_pair(name, first, second):
    """``E|Y - Y'| = int F (1 - G) + G (1 - F)`` by mpmath, in ``x = sinh(u)``."""

    def tails(x, loc, scale, df):
        z = (x - loc) / mp.mpf(scale)
        if name == "logistic":
            tail = 1 / (1 + mp.exp(abs(z)))
        else:
            df = mp.mpf(df)
            tail = mp.betainc(df / 2, 0.5, 0, df / (df + z * z), regularized=True) / 2
        return (1 - tail, tail) if z > 0 else (tail, 1 - tail)

    def integrand(u):
        x = mp.sinh(u)
        (f, f_up), (g, g_up) = tails(x, *first), tails(x, *second)
        return (f * g_up + g * f_up) * mp.cosh(u)

    cuts = [m + i * s for m, s, _ in (first, second) for i in (-10, -1, 0, 1, 10)]
    reach = 9 if name == "logistic" else 30 / (first[2] + second[2] - 2) ** 0.5 + 30
    cuts = sorted([*(float(np.arcsinh(x)) for x in cuts), -reach, reach])
    with mp.workdps(20):
        return float(mp.quad(integrand, cuts, maxdegree=7))


def pairs_of(name, cases, dtype=np.float64):
    first, second = (
        FAMILIES[name](
            **{
                key: jnp.asarray([case[i][j] for case in cases], dtype)[:, None]
                for j, key in enumerate(("loc", "scale", "df")[: 3 if name == "student" else 2])
            }
        )
        for i in (0, 1)
    )
    both = jax.jit(lambda a, b: (a.mean_difference(b), b.mean_difference(a)))(first, second)
    return np.asarray(both, np.float64)[..., 0]


PAIRS = {
    "logistic": [
        ((0.0, 1.0, 0.0), (0.0, 1.0, 0.0)),
        ((0.3, 1.0, 0.0), (0.0, 10.0, 0.0)),
        ((20.0, 1.0, 0.0), (0.0, 3.0, 0.0)),
        ((-5.0, 100.0, 0.0), (0.0, 1.0, 0.0)),
    ],
    "student": [
        ((0.3, 1.0, 3.0), (0.0, 10.0, 5.5)),
        ((3.0, 1.0, 2.0), (0.0, 1.0, 2.0)),
        ((-50.0, 1.0, 1.9), (0.0, 3.0, 2.5)),
        ((3.0, 1.0, 30.0), (0.0, 100.0, 4.0)),
    ],
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_without_a_closed_form_against_mpmath(name):
    exact = [exact_pair(name, *case) for case in PAIRS[name]]
    for found in pairs_of(name, PAIRS[name]):
        np.testing.assert_allclose(found, exact, rtol=1e-10)
    for found in pairs_of(name, PAIRS[name], np.float32):
        np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_student_pairs_of_many_degrees_of_freedom_are_normal_ones():
    cases = [
        ((shift, 1.0, df), (0.0, ratio, other))
        for shift in (0.0, 0.7, 30.0, 1e4)
        for ratio in (1e-6, 1.0, 3.0, 1e6)
        for df, other in ((np.inf, np.inf), (np.inf, 1e14))
    ]
    spread = np.array([np.hypot(1.0, case[1][1]) for case in cases])
    shift = np.array([case[0][0] for case in cases])
    z = shift / spread
    exact = 2 * spread * stats.norm.pdf(z) + shift * (2 * stats.norm.cdf(z) - 1)
    for dtype, rtol in ((np.float64, 1e-10), (np.float32, 1e-5)):  # what the docstring promises
        for found in pairs_of("student", cases, dtype):
            np.testing.assert_allclose(found, exact, rtol=rtol)


def test_student_pairs_of_very_different_scales():
    """The wider one sees the narrower one as a point, up to its variance times the density."""
    for df, ratio, shift in ((1.2, 1e-6, 0.5), (3.0, 1e-6, 2.0), (30.0, 1e-6, 1e4)):
        narrow, wide = (shift, ratio, 4.0), (0.0, 1.0, df)
        law = stats.t(df)
        beyond = 2 * law.pdf(shift) * (df + shift**2) / (df - 1)
        exact = shift * (1 - 2 * law.sf(shift)) + beyond + 2 * ratio**2 * law.pdf(shift)
        for found in pairs_of("student", [(narrow, wide)]):
            np.testing.assert_allclose(found, exact, rtol=1e-10)


@every_family
def test_own_difference_is_a_pair_of_equals(name):
    _, parameters = draw(name, np.random.default_rng(3), 6)
    family = build(name, np.zeros(6), parameters).components
    pairs = jax.jit(lambda family: family.mean_difference(family))(family)
    np.testing.assert_allclose(family.own_difference(), pairs, rtol=1e-10)


def analytic_cdf(name, z, df):
    """The standard cdf for complex numbers near the real line."""
    if name == "normal":
        return complex_step.ndtr(z)
    if name in ("logistic", "laplace"):
        tail = np.exp(np.where(z.real < 0, z, -z))
        tail = 0.5 * tail if name == "laplace" else tail / (1 + tail)
        return np.where(z.real < 0, tail, 1 - tail)
    # Student's t: the integral of cos^(df - 1) up to atan(z / sqrt(df)).
    nodes, weights = np.polynomial.legendre.leggauss(60)
    end = np.arctan(z / np.sqrt(df))
    slices = np.cos(0.5 * (1 + nodes) * end[..., None]) ** (df[..., None] - 1)
    constant = np.exp(special.loggamma((df + 1) / 2) - special.loggamma(df / 2)) / np.sqrt(np.pi)
    return 0.5 + constant * 0.5 * end * (slices @ weights)


@every_family
def test_gradients_are_those_of_the_integral(name):
    logits, parameters = draw(name, np.random.default_rng(4), 3)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    y = 0.4

    def score(logits, parameters, y):
        cast = {key: x[..., None] for key, x in parameters.items()}
        mixture = jaxmdn.Mixture(logits=logits, components=FAMILIES[name](**cast))
        return jaxmdn.crps(mixture, y[None])[0]

    loc, scale = parameters["loc"], parameters["scale"]
    centres = np.concatenate([loc + k * scale for k in (-4, -1, 0, 1, 4)])
    breaks = np.arcsinh(np.concatenate([centres, np.sinh(np.linspace(-20, 20, 41))]))

    def exact(logits, parameters, y):
        shares = np.exp(logits) / np.sum(np.exp(logits))
        middle, total = np.log(y + np.sqrt(y * y + 1)), 0.0
        below, above = (breaks[(breaks < 0.39) == side] for side in (True, False))
        for ends, side in ((np.append(np.sort(below), middle), 1), ([middle, *np.sort(above)], -1)):
            for low, high in itertools.pairwise(ends):
                u = low + 0.5 * (1 + nodes) * (high - low)
                z = side * (np.sinh(u)[:, None] - parameters["loc"]) / parameters["scale"]
                df = np.broadcast_to(parameters.get("df", 1.0), z.shape)
                tail = analytic_cdf(name, z, df) @ shares  # all of them are symmetric
                total += 0.5 * (high - low) * np.sum(weights * tail**2 * np.cosh(u))
        return total

    point = jnp.asarray(logits), jax.tree.map(jnp.asarray, parameters), jnp.asarray(y)
    complex_step.check(score, exact, *point, rtol=1e-7, atol=1e-8)


@pytest.mark.optimised
@every_family
def test_components_that_nearly_coincide_in_float32(name):
    """The score of a split component is that of the whole, in value and in gradient."""
    _, parameters = draw(name, np.random.default_rng(5), 1)
    twice = {key: np.repeat(x, 3) * (1 + 1e-7 * np.arange(3)) for key, x in parameters.items()}
    y = np.array([[0.1], [-2.0], [1e4]])
    exact = closed_form(name, y[:, 0], {key: x[0] for key, x in parameters.items()})

    def score(parameters, y):
        mixture = jaxmdn.Mixture(
            logits=jnp.zeros(3, y.dtype), components=FAMILIES[name](**parameters)
        )
        return jaxmdn.crps(mixture, y)[..., 0]

    low = {key: jnp.asarray(x, np.float32)[:, None] for key, x in twice.items()}
    np.testing.assert_allclose(score(low, jnp.asarray(y, np.float32)), exact, rtol=1e-5)
    slopes = jax.jacfwd(score)(low, jnp.asarray(y, np.float32))
    for key, x in parameters.items():
        step = 1e-5 * np.abs(x[0])
        ends = [
            closed_form(name, y[:, 0], {k: v[0] + s * (k == key) for k, v in parameters.items()})
            for s in (-step, step)
        ]
        numeric = (ends[1] - ends[0]) / (2 * step)
        np.testing.assert_allclose(
            np.sum(slopes[key], axis=(-1, -2)), numeric, rtol=2e-4, atol=2e-5, err_msg=key
        )


def test_infinite_scores_and_dead_components():
    logits = np.array([0.0, 0.0])
    parameters = {"loc": np.zeros(2), "scale": np.ones(2), "df": np.array([0.8, 3.0])}
    y = jnp.asarray([0.7])
    # E|Y - y| is infinite, the integral of the squared difference is not.
    row = special.softmax(logits), frozen("student", parameters), np.zeros(2), np.ones(2)
    found = jaxmdn.crps(build("student", logits, parameters), y)
    np.testing.assert_allclose(found, crps_integral(*row, 0.7), rtol=1e-4)
    dead = build("student", np.array([-np.inf, 0.0]), parameters)
    exact = scoringrules.crps_t(0.7, 3.0)
    np.testing.assert_allclose(
        jaxmdn.crps(dead, y), exact, rtol=1e-11
    )  # what 12 nodes leave: 5e-12
    family = dead.components
    assert family.absolute_moment(y[None])[0, 0] == np.inf
    assert family.own_difference()[0, 0] == np.inf
    assert np.isnan(jaxmdn.crps(dead, y * np.nan)).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_many_components_with_tails_like_powers(dtype):
    """Panels shared among ten components still resolve tails over many decades."""
    rng = np.random.default_rng(12)
    logits, parameters = draw("student", rng, 10, (6,))
    parameters["df"] = np.exp(rng.uniform(np.log(1.1), np.log(4.0), (6, 10)))
    y = np.array([0.1, -3.0, 8.0, 40.0, -300.0, 1e4])
    found = jaxmdn.crps(build("student", logits, parameters, dtype), jnp.asarray(y[:, None], dtype))
    for n in range(6):
        row = {key: x[n] for key, x in parameters.items()}
        law = special.softmax(logits[n]), frozen("student", row), row["loc"], row["scale"]
        rtol = 1e-8 if dtype == np.float64 else 1e-5
        np.testing.assert_allclose(found[n, 0], crps_integral(*law, y[n]), rtol=rtol)


def test_heavy_tails_far_from_zero_in_float32():
    """Panels are found to the rounding of their place, not to that of the farthest tail's."""
    rng = np.random.default_rng(0)
    logits, loc = rng.normal(size=(64, 2)), 1000 + 200 * rng.normal(size=(64, 2))
    scale, y = 60 * np.exp(0.7 * rng.normal(size=(64, 2))), 1000 + 400 * rng.normal(size=64)
    logits, loc, scale, y = (a.astype(np.float32) for a in (logits, loc, scale, y))
    members = components.StudentT(
        loc=loc[..., None], scale=scale[..., None], df=np.full((64, 1, 1), 5, np.float32)
    )
    found = jaxmdn.crps(jaxmdn.Mixture(logits=jnp.asarray(logits), components=members), y[:, None])
    weights = special.softmax(logits.astype(float), axis=-1)
    step = np.linspace(0, 16, 20001)  # outwards from the target
    for side in (-1, 1):
        at = y[:, None].astype(float) + side * np.sinh(step)
        z = side * (loc[..., None] - at[:, None]) / scale[..., None]
        tail = np.einsum("nk,nkp->np", weights, stats.t.cdf(z, 5))
        part = integrate.simpson(tail**2 * np.cosh(step), x=step)
        total = part if side < 0 else total + part
    np.testing.assert_allclose(np.squeeze(found), total, 1e-5)


def test_clusters_many_widths_apart():
    """What the nodes of a tail miss must not lie between the clusters (1 % of the score)."""
    loc = np.array([427.0, 131.0, -273.0, -278.0, 54.0, -68.0])
    scale, df = (
        np.array([0.28, 1.9, 1.9, 2.8, 1.1, 0.14]),
        np.array([3.1, 12.0, 21.0, 2.7, 4.6, 1.5]),
    )
    weights = np.array([0.01, 0.08, 0.27, 0.03, 0.06, 0.55])
    parameters = {"loc": loc, "scale": scale, "df": df}
    y = np.array([-68.28, 130.0, -275.0])
    exact = [crps_integral(weights, frozen("student", parameters), loc, scale, t) for t in y]
    found = jaxmdn.crps(build("student", np.log(weights), parameters), jnp.asarray(y[:, None]))
    np.testing.assert_allclose(found[:, 0], exact, rtol=1e-4)  # 3e-3 by one term for all


def test_log_normal_mixtures_narrow_and_wide():
    """By the integral in ``log t``; the derivative is that of the squared difference."""
    cases = [
        ([0.0, 0.5, -1.0], [0.3, 1e-3, 2.0]),
        ([2.0, 2.001, 1.999], [1e-3, 2e-3, 5e-4]),
        ([-3.0, 0.0, 4.0], [5.0, 0.5, 0.4]),
        ([50.0, 49.0, 51.0], [6.0, 0.1, 1.0]),
    ]
    y, weights = np.exp([0.5, 2.0005, 1.0, 50.0]), np.array([0.5, 0.2, 0.3])
    loc, scale = (np.array(part) for part in zip(*cases, strict=True))

    def score(loc, scale, y):
        members = components.LogNormal(loc=loc[..., None], scale=scale[..., None])
        mixture = jaxmdn.Mixture(logits=jnp.log(weights).astype(y.dtype), components=members)
        return jaxmdn.crps(mixture, y[:, None])[:, 0]

    def over(m, s, end, part):
        cuts = np.unique(np.concatenate([[end], *(m + k * s for k in (-38, -8, -2, 0, 2, 8, 38))]))

        def integrand(u):
            z = (u - m) / s
            tails = special.ndtr(z if u < end else -z)
            gap = np.sum(weights * tails) * (1 if u < end else -1)
            return part(gap, -2 * weights * stats.norm.pdf(z) / s, z) * np.exp(u)

        pieces = itertools.pairwise(cuts)
        return sum(integrate.quad(integrand, *ends, epsrel=1e-12, limit=200)[0] for ends in pieces)

    rows = (loc, scale, np.log(y))
    point = tuple(map(jnp.asarray, (loc, scale, y)))
    found, pull = jax.jit(lambda *point: jax.vjp(score, *point))(*point)
    slopes = jax.jit(pull)(jnp.ones(4))
    exact = [over(*row, lambda gap, slope, z: gap * gap) for row in zip(*rows, strict=True)]
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    for k in range(3):
        in_loc = [over(*row, lambda gap, f, z, k=k: gap * f[k]) for row in zip(*rows, strict=True)]
        in_scale = [
            over(*row, lambda gap, f, z, k=k: gap * f[k] * z[k]) for row in zip(*rows, strict=True)
        ]
        np.testing.assert_allclose(slopes[0][:, k], in_loc, rtol=1e-8)
        np.testing.assert_allclose(slopes[1][:, k], in_scale, rtol=1e-7)
    below = special.ndtr((np.log(y)[:, None] - loc) / scale) @ weights
    np.testing.assert_allclose(slopes[2], 2 * below - 1, rtol=1e-9)


def test_leading_axes_broadcast():
    rng = np.random.default_rng(6)
    logits, parameters = draw("laplace", rng, 3, (4,))
    parameters["scale"] = parameters["scale"][:1, :1]  # shared by all rows and components
    y = jnp.asarray(rng.normal(size=(7, 4, 1)))
    mixture = build("laplace", logits, parameters)
    found = jaxmdn.crps(mixture, y)
    assert found.shape == (7, 4, 1)
    full = {key: np.broadcast_to(x, (4, 3)) for key, x in parameters.items()}
    rows = jax.vmap(jaxmdn.crps, in_axes=(0, 1), out_axes=1)(build("laplace", logits, full), y)
    np.testing.assert_allclose(found, rows, rtol=1e-13)


@family(name="gumbel_of_unit_scale")
class Gumbel(Univariate):
    """A family without mean distances, to see what it takes to write one."""

    loc: Parameter = real()

    def marginal_log_prob(self, y):
        return self.loc - y - jnp.exp(self.loc - y)

    def sample(self, key, shape=()):
        return self.loc + jax.random.gumbel(key, (*shape, *self.batch_shape, self.event_dim))

    def cdf(self, y):
        return jnp.exp(-jnp.exp(self.loc - y))

    def quantile(self, p):
        return self.loc - jnp.log(-jnp.log(p))


def test_families_of_ones_own_are_scored_by_quadrature():
    loc, weights = np.array([0.0, 1.0, 12.0]), np.array([0.5, 0.2, 0.3])
    member = Gumbel(loc=jnp.asarray(loc)[:, None])
    mixture = jaxmdn.Mixture(logits=jnp.log(jnp.asarray(weights)), components=member)
    y = np.array([-1.0, 0.5, 6.0, 12.0, 30.0])
    exact = [crps_integral(weights, stats.gumbel_r(loc), loc, np.ones(3), t, 6.0) for t in y]
    found = jaxmdn.crps(mixture, jnp.asarray(y)[:, None])[:, 0]
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_score_by_quantiles_of_whole_numbers_and_beside_zeros():
    """Sums over a lattice are exact; where a hurdle's quantiles stand still the levels are cut."""
    rate, y = np.array([3.0, 11.0]), np.array([0.0, 2.0, 2.5, 9.0, 40.0])
    weights, zero = np.array([0.3, 0.7]), 0.4
    gamma = components.Gamma(concentration=jnp.full((2, 1), 2.0), rate=jnp.asarray(rate[:, None]))
    hurdle = components.Hurdle(base=gamma, logit=jnp.full((2, 1), np.log(zero / (1 - zero))))
    counts = components.Poisson(rate=jnp.asarray(rate[:, None]))
    both = components.Independent(parts=(hurdle, counts), dims=((0,), (1,)))
    mixture = jaxmdn.Mixture(logits=jnp.log(weights), components=both)
    found = np.asarray(quantile_crps(mixture, jnp.asarray(np.stack([y / 4, y], axis=-1))))
    steps = np.arange(4000) / 16  # where neither the cdf nor the indicator jumps within a step
    cdf = stats.poisson.cdf(steps[:, None], rate) @ weights
    exact = np.sum((cdf[:, None] - (steps[:, None] >= y)) ** 2, axis=0) / 16
    np.testing.assert_allclose(found[:, 1], exact, rtol=1e-12)

    def squared(t, y):
        cdf = zero + (1 - zero) * stats.gamma.cdf(t, 2, scale=1 / rate) @ weights
        return (cdf - (t >= y)) ** 2

    for value, place in zip(found[:, 0], y / 4, strict=True):
        pieces = [integrate.quad(squared, *ends, (place,))[0] for ends in ((0, place), (place, 30))]
        np.testing.assert_allclose(value, sum(pieces), rtol=1e-6)


def test_accuracy_of_the_score_by_quantiles():
    """What the docstring says of it."""
    rng = np.random.default_rng(7)
    spread = np.repeat([1.0, 5.0, 30.0], 20)[:, None]
    logits, parameters = draw("normal", rng, 5, (60,))
    parameters["loc"] *= spread / 2.0
    mixture = build("normal", logits, parameters)
    y = jnp.asarray(spread * rng.normal(size=(60, 1)))
    errors = np.abs(quantile_crps(mixture, y) / jaxmdn.crps(mixture, y) - 1)
    assert np.median(errors) < 1e-6
    assert np.max(errors) < 1e-2
    one = build("normal", [0.0], {"loc": np.zeros(1), "scale": np.ones(1)})
    y = jnp.linspace(-8.0, 8.0, 9)[:, None]
    exact = scoringrules.crps_normal(np.asarray(y), 0.0, 1.0)
    for levels, rtol in ((16, 1e-5), (32, 1e-7)):
        np.testing.assert_allclose(quantile_crps(one, y, num_levels=levels), exact, rtol=rtol)
    slope = jax.vmap(jax.grad(lambda t: quantile_crps(one, t[None])[0]))(y[:, 0])
    np.testing.assert_allclose(slope, 2 * stats.norm.cdf(y[:, 0]) - 1, atol=1e-7)
    low = build("normal", [0.0], {"loc": np.zeros(1), "scale": np.ones(1)}, np.float32)
    # The last level next to one is rounded: its weight times its quantile's error.
    np.testing.assert_allclose(quantile_crps(low, y.astype(np.float32)), exact, rtol=1e-4)
    assert np.isnan(quantile_crps(one, jnp.full(1, jnp.nan))).all()


def one(member):
    return jaxmdn.Mixture(logits=jnp.zeros(1, member.dtype), components=member)


def poisson_crps(y, rate):
    """The sum over the whole numbers."""
    k = np.arange(y + 40 + 20 * rate)
    law = stats.poisson(rate)
    return np.sum(np.where(k < y, law.cdf(k), law.sf(k)) ** 2)


SKEW = np.sqrt(0.7 / 1.1)
NUMBERS = [
    (Bernoulli(logit=jnp.full((1, 1), np.log(9.0))), 1.0, 0.01),
    (Bernoulli(logit=jnp.full((1, 1), np.log(9.0))), 0.0, 0.81),
    (Poisson(rate=jnp.full((1, 1), 3.0)), 3.0, poisson_crps(3.0, 3.0)),
    (Poisson(rate=jnp.full((1, 1), 4e3)), 4100.0, poisson_crps(4100.0, 4e3)),
    # Between whole numbers it is linear, beyond the support the distance is added.
    (
        Poisson(rate=jnp.full((1, 1), 3.0)),
        2.5,
        0.5 * (poisson_crps(2.0, 3.0) + poisson_crps(3.0, 3.0)),
    ),
    (
        Poisson(rate=jnp.full((1, 1), 3.0)),
        -2.0,
        2.0 + poisson_crps(0.0, 3.0),
    ),
    (
        AsymmetricLaplace(
            loc=jnp.zeros((1, 1)),
            scale=jnp.full((1, 1), np.sqrt(0.77)),
            asymmetry=jnp.full((1, 1), SKEW),
        ),
        -3.0,
        scoringrules.crps_2pexponential(-3.0, np.sqrt(0.77) * SKEW, np.sqrt(0.77) / SKEW, 0.0),
    ),
    (
        Hurdle(
            base=Gamma(concentration=jnp.ones((1, 1)), rate=jnp.full((1, 1), 0.7)),
            logit=jnp.full((1, 1), np.log(1.5)),
        ),
        3.0,
        # int_0^3 (1 - .4 e^-.7t)^2 dt + int_3^inf (.4 e^-.7t)^2 dt
        3 - 0.8 * -np.expm1(-2.1) / 0.7 + 0.16 / 1.4,
    ),
    (
        Hurdle(
            base=TruncatedNormal(
                loc=jnp.full((1, 1), 2.0), scale=jnp.ones((1, 1)), lower=1.0, upper=4.0
            ),
            logit=jnp.zeros((1, 1)),
        ),
        -1.0,
        # 1 below zero, 0.5^2 from there to the bound, then that of the rest.
        1
        + 0.25
        + 0.25 * integrate.quad(lambda t: stats.truncnorm(-1, 2, 2, 1).sf(t) ** 2, 1, 4)[0],
    ),
]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_numbers_by_other_formulas(dtype):
    """Of counts, of a cusp, of a mass at zero within and beside a density."""
    for member, y, exact in NUMBERS:
        member = jax.tree.map(lambda leaf: leaf.astype(dtype), member)
        found = jaxmdn.crps(one(member), jnp.full(1, y, dtype))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, exact, rtol=1e-7 if dtype == np.float64 else 3e-6)


def test_counts_whose_steps_the_dtype_does_not_resolve():
    """Poisson rates of 1e8 and more in float32, by the normals that they are."""
    size = np.array([1e8, 1e12, 1e20, 1e30])
    rate = np.float32(np.stack([size, size + 3 * np.sqrt(size)], axis=-1))
    y = np.float32(size - 2 * np.sqrt(size))
    wide = np.float64(rate)
    exact = scoringrules.crps_mixnorm(np.float64(y), wide, np.sqrt(wide), np.full((4, 2), 0.5))
    members = Poisson(rate=jnp.asarray(rate)[..., None])
    mixture = jaxmdn.Mixture(logits=jnp.zeros(2, jnp.float32), components=members)
    found = jaxmdn.crps(mixture, jnp.asarray(y)[:, None])[:, 0]
    np.testing.assert_allclose(found, exact, rtol=1e-4)


ONE = build("normal", [0.0], {"loc": np.zeros(1), "scale": np.ones(1)})
CATEGORICAL = jaxmdn.CategoricalHead(3)(jnp.zeros((5, 3)))
ERRORS = [
    ((ONE, jnp.zeros(2)), {}, ValueError, r"quantile_crps: expected y of shape \[\.\.\., 1\]"),
    ((ONE, jnp.zeros(1)), {"num_levels": 0}, ValueError, "num_levels must be at least 1, got 0"),
    ((ONE, jnp.zeros(1)), {"num_levels": 2.0}, TypeError, "num_levels must be a Python int"),
    ((CATEGORICAL, jnp.zeros((5, 1), int)), {}, TypeError, "cdf: not defined for Categorical"),
]


@pytest.mark.parametrize(("arguments", "options", "kind", "message"), ERRORS)
def test_errors(user_errors, arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        quantile_crps(*arguments, **options)
