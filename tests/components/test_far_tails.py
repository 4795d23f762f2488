"""Logarithms of densities and tails, and all their slopes, from half a scale to 1e9 scales out.

One program a family and a dtype; the oracle is mpmath's, whose slopes are differences of step 1e-25
in 90 digits.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from mpmath import exp, log, log1p, mpf
from own_families import Gumbel, Lomax

import jaxmdn
from jaxmdn import components as c

SCALES = (0.5, 5.0, 40.0, 1e4, 1e9)
BOTH = (*(-s for s in SCALES[::-1]), *SCALES)
OUTPUTS = ("log_prob", "log_cdf", "log_survival")


class Far(NamedTuple):
    """A family, rows of its parameters and a target, and ``log p``, ``log P(<=)``, ``log P(>)``."""

    make: Callable[..., Any]
    names: tuple[str, ...]  # of the parameters; the target comes last in a row
    rows: list[tuple[float, ...]]
    law: Callable[..., tuple]
    moves: bool = True  # whether there are slopes in the target
    exact: bool = False  # whether the law gives the slopes too
    units: float = 60  # of rounding, that are allowed
    shares: bool = False  # whether slopes are exponentials of differences of logarithms


def lower(log_prob, log_side):
    """All three of a logarithm of the lower tail."""
    return log_prob, log_side, log_rest(log_side)


def upper(log_prob, log_side):
    return log_prob, log_rest(log_side), log_side


def log_rest(log_side):
    return log1p(-exp(log_side))


# ------------------------------------------------------------------------------------ the laws


def mills(x):
    """``log P(Z > x)`` of a normal for ``x >= 0``: Laplace's continued fraction far out."""
    if x < 60:
        return log(mpmath.erfc(x / mpmath.sqrt(2)) / 2)
    rest = functools.reduce(lambda rest, k: k / (x + rest), range(12, 0, -1), mpf(0))
    return -x * x / 2 - log(2 * mpmath.pi) / 2 - log(x + rest)


def standard_normal(z):
    log_prob = -z * z / 2 - log(2 * mpmath.pi) / 2
    return upper(log_prob, mills(z)) if z > 0 else lower(log_prob, mills(-z))


def standard_laplace(z):
    side = -abs(z) - log(2)
    return upper(side, side) if z > 0 else lower(side, side)


def standard_logistic(z):
    below, above = -log1p(exp(-z)), -log1p(exp(z))
    return below + above, below, above


def student(z, df):
    norm = mpmath.loggamma((df + 1) / 2) - mpmath.loggamma(df / 2) - log(df * mpmath.pi) / 2
    log_prob = norm - (df + 1) / 2 * log1p(z * z / df)
    half = mpf(1) / 2
    side = log(mpmath.betainc(df / 2, half, 0, df / (df + z * z), regularized=True) / 2)
    return upper(log_prob, side) if z > 0 else lower(log_prob, side)


def scaled(law):
    """Of ``loc + scale z``."""

    def moved(loc, scale, *rest):
        *shape, y = rest
        log_prob, below, above = law((y - loc) / scale, *shape)
        return log_prob - log(scale), below, above

    return moved


def skewed(z, k):
    rate, share = (k, 1 / (1 + k * k)) if z > 0 else (-1 / k, k * k / (1 + k * k))
    log_prob, side = log(k / (1 + k * k)) - z * rate, log(share) - z * rate
    return upper(log_prob, side) if z > 0 else lower(log_prob, side)


def log_normal(loc, scale, y):
    log_prob, below, above = standard_normal((log(y) - loc) / scale)
    return log_prob - log(scale * y), below, above


def gamma(a, rate, y):
    x = rate * y
    log_prob = a * log(x) - x - mpmath.loggamma(a) - log(y)
    if x > a:
        return upper(log_prob, log_gamma_tail(a, x))
    return lower(log_prob, log(mpmath.gammainc(a, 0, x, regularized=True)))


def log_gamma_tail(a, x):
    """``log Q(a, x)``: Legendre's continued fraction far out."""
    if x < a + 60:
        return log(mpmath.gammainc(a, x, mpmath.inf, regularized=True))
    rest = mpf(0)
    for n in range(60, 0, -1):
        rest = n * (a - n) / (x + 2 * n + 1 - a + rest)
    return a * log(x) - x - mpmath.loggamma(a) - log(x + 1 - a + rest)


def weibull(k, scale, y):
    h = (y / scale) ** k
    log_prob = log(k) - log(y) + log(h) - h
    return upper(log_prob, -h) if h > 1 else lower(log_prob, log(-mpmath.expm1(-h)))


def beta(a, b, y):
    log_prob = (a - 1) * log(y) + (b - 1) * log1p(-y) - log(mpmath.beta(a, b))
    if y < a / (a + b):
        return lower(log_prob, log(mpmath.betainc(a, b, 0, y, regularized=True)))
    return upper(log_prob, log(mpmath.betainc(b, a, 0, 1 - y, regularized=True)))


def logit_normal(loc, scale, y):
    log_prob, below, above = standard_normal((log(y) - log1p(-y) - loc) / scale)
    return log_prob - log(scale * y * (1 - y)), below, above


def log_between(a, b):
    """``log P(a < Z < b)`` of a normal."""
    if a > 0:
        a, b = -b, -a
    if b > 0:
        return log1p(-exp(mills(-a)) - exp(mills(b)))
    return mills(-b) + log_rest(mills(-a) - mills(-b))


def truncated(low, high):
    def law(loc, scale, y):
        a, z, b = ((v - loc) / scale for v in (mpf(low), y, mpf(high)))
        whole = log_between(a, b)
        log_prob = standard_normal(z)[0] - log(scale) - whole
        below, above = log_between(a, z) - whole, log_between(z, b) - whole
        return lower(log_prob, below) if below < above else upper(log_prob, above)

    return law


def poisson(rate, y):
    log_prob = y * log(rate) - rate - mpmath.loggamma(y + 1)
    if rate > y + 1:
        return lower(log_prob, log_gamma_tail(y + 1, rate))
    return upper(log_prob, log(mpmath.gammainc(y + 1, 0, rate, regularized=True)))


def negative_binomial(m, r, y):
    p = r / (r + m)
    log_prob = mpmath.loggamma(y + r) - mpmath.loggamma(r) - mpmath.loggamma(y + 1)
    log_prob += r * log(p) + y * log(m / (r + m))
    if y < m:
        return lower(log_prob, log(mpmath.betainc(r, y + 1, 0, p, regularized=True)))
    return upper(log_prob, log(mpmath.betainc(y + 1, r, 0, m / (r + m), regularized=True)))


def bernoulli(logit, y):
    no, yes = -log1p(exp(logit)), -log1p(exp(-logit))
    return (no, no, yes) if y == 0 else (yes, mpf(0), -mpmath.inf)


def rounded(loc, scale, y):
    """A logistic variable rounded to 0, 1, ..., 10."""

    def edge(at):
        return standard_logistic((at - loc) / scale)[1:]

    _, below, above = (0, *edge(y + 0.5)) if y < 10 else (0, mpf(0), -mpmath.inf)
    first, last = (edge(y - 0.5) if y > 0 else (-mpmath.inf, mpf(0))), (below, above)
    if y in (0, 10):
        return (last[0] if y == 0 else first[1]), below, above
    width = log(-mpmath.expm1(-1 / scale))
    return last[0] + first[1] + width, below, above


def with_zeros(base, hurdle):
    def law(*row):
        *inner, logit, y = row
        zero, rest = -log1p(exp(-logit)), -log1p(exp(logit))
        log_prob, _, above = base(*inner, y)
        if not hurdle:
            log_prob = log(exp(zero) + exp(rest + log_prob)) if y == 0 else rest + log_prob
        else:
            log_prob = zero if y == 0 else rest + log_prob
        return log_prob, log_rest(rest + above), rest + above

    return law


def von_mises(loc, k, y):
    """Values, and their slopes: quadratures in pieces around the ends and the mode."""

    def side(low, high):
        peaks = [peak for peak in (low, high, loc) if low <= peak <= high]
        top = max(mpmath.cos(peak - loc) for peak in peaks)
        ends = set()
        for peak in peaks:
            width = 1 / (mpmath.sqrt(k) + k * abs(mpmath.sin(peak - loc)))
            cuts = [peak + step * width for step in (-60, -20, -8, -3, -1, 0, 1, 3, 8, 20, 60)]
            ends |= {min(max(cut, low), high) for cut in cuts}
        ends = sorted(ends)

        def moment(power):
            return mpmath.quad(
                lambda t: exp(k * (mpmath.cos(t - loc) - top)) * (1 - mpmath.cos(t - loc)) ** power,
                ends,
            )

        mass, gap = moment(0), moment(1)
        first, last = (exp(k * (mpmath.cos(end - loc) - top)) / mass for end in (low, high))
        log_mass = log(mass) + k * (top - 1) - norm
        in_y = last if low == -mpmath.pi else -first
        return log_mass, (first - last, mean_gap - gap / mass, in_y)

    with mpmath.workdps(30):
        bessel = mpmath.besseli(0, k)
        norm = log(2 * mpmath.pi * bessel) - k
        mean_gap = 1 - mpmath.besseli(1, k) / bessel
        cosine, sine = mpmath.cos(y - loc), mpmath.sin(y - loc)
        value, slopes = side(-mpmath.pi, y) if y < loc else side(y, mpmath.pi)
        odds = -exp(value - log_rest(value))
        pair = [(value, slopes), (log_rest(value), [odds * slope for slope in slopes])]
        pair = pair if y < loc else pair[::-1]
        density = k * (cosine - 1) - norm, (k * sine, cosine - 1 + mean_gap, -k * sine)
        return zip(*(density, *pair), strict=True)


def blended(law, count):
    """Two members of a family of ``count`` parameters, one after the other behind a logit."""

    def mixed(*row):
        logit, *parameters, y = row
        whole = log1p(exp(logit))
        parts = [
            [weight - whole + v for v in law(*own, y)]
            for weight, own in zip(
                (logit, mpf(0)), (parameters[:count], parameters[count:]), strict=True
            )
        ]
        log_prob, below, above = (
            max(pair) + log1p(exp(min(pair) - max(pair))) if max(pair) > -mpmath.inf else max(pair)
            for pair in zip(*parts, strict=True)
        )
        return upper(log_prob, above) if above < below else lower(log_prob, below)

    return mixed


def gumbel(z):
    side = -exp(-z)  # of the lower tail
    return (lower if side < -1 else upper)(
        -z + side, side if side < -1 else log(-mpmath.expm1(side))
    )


def lomax(scale, shape, y):
    side = -shape * log1p(y / scale)
    log_prob = log(shape / scale) + side - log1p(y / scale)
    if side < -1:
        return upper(log_prob, side)
    return lower(log_prob, log(-mpmath.expm1(side)))


def second_of_two(loc, first, below, last, y):
    """The second of two outputs, ``W = [[first, 0], [below, last]]`` (``FullNormal``)."""
    scale = mpmath.sqrt(1 + (below / first) ** 2) / last
    return scaled(standard_normal)(loc, scale, y)


def second_of_factor(loc, scale, factor, y):
    return scaled(standard_normal)(loc, mpmath.sqrt(scale**2 + factor**2), y)


def flipped(law):
    """Of ``-Y``, whose location is the other one too."""

    def turned(loc, scale, y):
        log_prob, below, above = law(-loc, scale, -y)
        return log_prob, above, below

    return turned


def between(law):
    """Of ``4 Y - 2``."""

    def moved(*row):
        *parameters, y = row
        log_prob, below, above = law(*parameters, (y + 2) / 4)
        return log_prob - log(4), below, above

    return moved


def hurdled_counts(base):
    """A hurdle over counts, at one or more of them."""

    def law(*row):
        *inner, logit, y = row
        rest = -log1p(exp(logit)) - log_rest(base(*inner, mpf(0))[0])
        log_prob, _, above = base(*inner, y)
        return upper(rest + log_prob, rest + above)

    return law


def either_side(base):
    """A hurdle over a family on the whole line."""

    def law(*row):
        *inner, logit, y = row
        rest = -log1p(exp(logit))
        log_prob, below, above = base(*inner, y)
        log_prob, below, above = (rest + v for v in (log_prob, below, above))
        return upper(log_prob, above) if y > 0 else lower(log_prob, below)

    return law


# ------------------------------------------------------------------------------------ families


def two_of(kind, names):
    """How a mixture of two is made, and the names of its parameters in a row."""

    def make(logit, **parameters):
        logits = jnp.concatenate([logit, jnp.zeros_like(logit)], axis=-1)
        own = {
            name: jnp.stack([parameters[f"first_{name}"], parameters[f"second_{name}"]], axis=-2)
            for name in names
        }
        return jaxmdn.Mixture(logits=logits, components=kind(**own))

    return make, ("logit", *(f"{which}_{name}" for which in ("first", "second") for name in names))


def of_classes(logit, **parameters):
    """A mixture of one mixture, as a class-conditional density is."""
    inner = two_of(c.Laplace, REAL)[0](logit, **parameters)
    outer = jax.tree.map(lambda leaf: leaf[:, None], inner)
    return jaxmdn.Mixture(logits=jnp.zeros_like(logit), components=outer)


def correlated(loc, first, below, last):
    none = jnp.zeros_like(first)
    rows = [jnp.concatenate([first, none], -1), jnp.concatenate([below, last], -1)]
    loc = jnp.concatenate([loc, loc], -1)
    return c.FullNormal(loc=loc, whitening_tril=jnp.stack(rows, axis=-2)).marginal((1,))


def of_factors(loc, scale, factor):
    pair = {"loc": loc, "scale": scale, "factor": factor[..., None]}
    pair = {name: jnp.concatenate([v, v], axis=1) for name, v in pair.items()}
    return c.LowRankNormal(**pair).marginal((1,))


def over(kind, base):
    return lambda logit, **parameters: kind(base=base(**parameters), logit=logit)


def around(*parameters):
    """Targets around ``loc`` on both sides, ``loc`` and ``scale`` the first two parameters."""
    loc, scale = parameters[:2]
    return [(*parameters, loc + s * scale) for s in BOTH]


def grid(*axes):
    return list(itertools.product(*axes))


def around_with(parameters, loc, scale):
    return [(*parameters, loc + s * scale) for s in BOTH]


def apart(parameters):
    """Two members, of which the second one is at -1 and wider."""
    return [(*parameters, 0.5 + 2 * s) for s in BOTH]


REAL_ROW = (0.3, 0.5, 2.0, -1.0, 3.0)
UP_AND_DOWN = (*(1 / s for s in SCALES[::-1]), *SCALES)
SHARES = (1e-9, 1e-4, 1 / 40, 0.2, 0.5, 0.8, 1 - 2**-6, 1 - 2**-20)
EVEN = (0.0, 5.0, 40.0, 1e4)
REAL = ("loc", "scale")
FAMILIES = {
    "normal": Far(c.Normal, REAL, around(0.5, 2.0), scaled(standard_normal)),
    "laplace": Far(c.Laplace, REAL, around(0.5, 2.0), scaled(standard_laplace)),
    "logistic": Far(c.Logistic, REAL, around(0.5, 2.0), scaled(standard_logistic)),
    "student-t": Far(
        c.StudentT,
        (*REAL, "df"),
        [row for df in (0.5, 3.0, 40.0) for row in around(0.5, 2.0, df)],
        scaled(student),
    ),
    "asymmetric-laplace": Far(
        c.AsymmetricLaplace,
        (*REAL, "asymmetry"),
        [row for k in (0.25, 3.0) for row in around(0.5, 2.0, k)],
        scaled(skewed),
    ),
    "log-normal": Far(c.LogNormal, REAL, grid((0.5,), (0.02, 2.0), UP_AND_DOWN), log_normal),
    "gamma": Far(
        c.Gamma, ("concentration", "rate"), grid((0.25, 1.0, 3.0, 40.0), (2.0,), UP_AND_DOWN), gamma
    ),
    "weibull": Far(
        c.Weibull, ("concentration", "scale"), grid((0.25, 1.0, 3.0), (2.0,), UP_AND_DOWN), weibull
    ),
    "beta": Far(
        c.Beta,
        ("concentration1", "concentration0"),
        grid((0.25, 3.0, 40.0), (0.25, 3.0, 40.0), SHARES),
        beta,
    ),
    "logit-normal": Far(
        c.LogitNormal, REAL, grid((0.5, -40.0, 1e4, 1e9), (0.5,), SHARES), logit_normal
    ),
    "truncated-normal": Far(
        functools.partial(c.TruncatedNormal, lower=-1.0, upper=1.5),
        REAL,
        grid((0.25, *BOTH), (0.5, 2.0), (-0.75, 0.125, 1.25)),
        truncated(-1, 1.5),
        units=300,  # in the scale, the slope of a nearly uniform density is a small difference
    ),
    "positive-normal": Far(
        c.TruncatedNormal,
        REAL,
        grid((0.25, *BOTH), (0.5,), SCALES),
        truncated(0, mpmath.inf),
        units=100,
    ),
    "von-mises": Far(
        c.VonMises,
        ("loc", "concentration"),
        grid((0.0,), (0.5, 40.0, 1e4), (-2.0, -0.25, 0.5, 1.0))
        + grid((2.5, -2.5), (0.5, 40.0, 1e4), (-3.0, 1.5, 2.75))
        + [(0.0, 1e9, s * 2.0**-15) for s in (-40.0, -5.0, 0.5, 5.0, 40.0, 1e4)],
        von_mises,
        exact=True,
        units=200,  # next to the cut, slopes in the location are differences
    ),
    "poisson": Far(
        c.Poisson, ("rate",), grid((1e-4, 0.5, 5.0, 40.0, 1e4), EVEN), poisson, moves=False
    ),
    "negative-binomial": Far(
        c.NegativeBinomial,
        ("rate", "concentration"),
        grid((0.5, 40.0, 1e4), (0.5, 5.0), (0.0, 5.0, 40.0, 1e3)),
        negative_binomial,
        moves=False,
    ),
    "bernoulli": Far(c.Bernoulli, ("logit",), grid(BOTH, (0.0, 1.0)), bernoulli, moves=False),
    "discretized-logistic": Far(
        functools.partial(c.DiscretizedLogistic, lower=0.0, upper=10.0, num_bins=11),
        REAL,
        grid((5.25, *(0.5 * s for s in BOTH)), (0.5,), (0.0, 4.0, 10.0)),
        rounded,
        moves=False,
    ),
    "zero-inflated": Far(
        over(c.ZeroInflated, c.Poisson),
        ("rate", "logit"),
        grid((0.5, 40.0), (-40.0, 0.5, 40.0), EVEN),
        with_zeros(poisson, hurdle=False),
        moves=False,
    ),
    "hurdle": Far(
        over(c.Hurdle, c.Gamma),
        ("concentration", "rate", "logit"),
        grid((3.0,), (2.0,), (-40.0, 0.5, 40.0), UP_AND_DOWN),
        with_zeros(gamma, hurdle=True),
    ),
    "negative-normal": Far(
        functools.partial(c.TruncatedNormal, lower=-np.inf, upper=0.0),
        REAL,
        grid((0.25, *BOTH), (0.5,), [-s for s in SCALES]),
        flipped(truncated(0, mpmath.inf)),
        units=100,
    ),
    "beta-moved": Far(
        functools.partial(c.Beta, lower=-2.0, upper=2.0),
        ("concentration1", "concentration0"),
        grid((0.25, 40.0), (3.0,), [4 * share - 2 for share in SHARES[2:]]),
        between(beta),
    ),
    "hurdle-normal": Far(
        over(c.Hurdle, c.Normal),
        (*REAL, "logit"),
        [(0.5, 2.0, logit, 0.5 + 2 * s) for logit in (-40.0, 0.5, 40.0) for s in BOTH],
        either_side(scaled(standard_normal)),
    ),
    "hurdle-counts": Far(
        over(c.Hurdle, c.Poisson),
        ("rate", "logit"),
        grid((0.5, 40.0), (-40.0, 0.5, 40.0), EVEN[1:]),
        hurdled_counts(poisson),
        moves=False,
    ),
    "zero-inflated-negative-binomial": Far(
        over(c.ZeroInflated, c.NegativeBinomial),
        ("rate", "concentration", "logit"),
        grid((0.5, 40.0), (5.0,), (-40.0, 0.5, 40.0), (0.0, 5.0, 40.0, 1e3)),
        with_zeros(negative_binomial, hurdle=False),
        moves=False,
    ),
    "full-normal": Far(
        correlated,
        ("loc", "first", "below", "last"),
        around_with((0.5, 1.5, -2.0, 0.75), 0.5, 2.0),
        second_of_two,
    ),
    "low-rank-normal": Far(
        of_factors, (*REAL, "factor"), around_with((0.5, 2.0, -1.5), 0.5, 2.0), second_of_factor
    ),
    "gumbel": Far(
        Gumbel,
        REAL,
        [(0.5, 2.0, 0.5 + 2 * z) for z in (-40.0, -5.0, -2.5, -0.5, *SCALES)],
        scaled(gumbel),
        units=200,
        shares=True,
    ),
    "lomax": Far(
        Lomax,
        ("scale", "shape"),
        grid((2.0,), (0.75, 1.5), UP_AND_DOWN),
        lomax,
        units=200,
        shares=True,
    ),
    "mixture": Far(
        *two_of(c.Normal, REAL),
        apart(REAL_ROW),
        blended(scaled(standard_normal), 2),
        shares=True,
    ),
    "mixture-classes": Far(
        of_classes,
        two_of(c.Laplace, REAL)[1],
        apart(REAL_ROW),
        blended(scaled(standard_laplace), 2),
        shares=True,
    ),
    "mixture-logistic": Far(
        *two_of(c.Logistic, REAL),
        apart(REAL_ROW),
        blended(scaled(standard_logistic), 2),
        shares=True,
    ),
    "mixture-student-t": Far(
        *two_of(c.StudentT, (*REAL, "df")),
        apart((0.3, 0.5, 2.0, 3.0, -1.0, 3.0, 40.0)),
        blended(scaled(student), 3),
        shares=True,
    ),
    "mixture-log-normal": Far(
        *two_of(c.LogNormal, REAL),
        [(0.3, 0.5, 2.0, -1.0, 0.25, y) for y in UP_AND_DOWN],
        blended(log_normal, 2),
        shares=True,
    ),
    "mixture-gamma": Far(
        *two_of(c.Gamma, ("concentration", "rate")),
        [(0.3, 3.0, 2.0, 0.5, 1.0, y) for y in UP_AND_DOWN],
        blended(gamma, 2),
        shares=True,
    ),
    "mixture-beta": Far(
        *two_of(c.Beta, ("concentration1", "concentration0")),
        [(0.3, 3.0, 2.0, 0.5, 40.0, y) for y in SHARES],
        blended(beta, 2),
        shares=True,
    ),
    "mixture-weibull": Far(
        *two_of(c.Weibull, ("concentration", "scale")),
        [(0.3, 3.0, 2.0, 0.75, 1.0, y) for y in UP_AND_DOWN],
        blended(weibull, 2),
        shares=True,
    ),
    "mixture-poisson": Far(
        *two_of(c.Poisson, ("rate",)),
        [
            (logit, *rates, y)
            for logit in (0.3, -40.0)
            for rates in ((0.5, 40.0), (1e4, 5.0))
            for y in EVEN
        ],
        blended(poisson, 1),
        moves=False,
        shares=True,
    ),
    "mixture-gumbel": Far(
        *two_of(Gumbel, REAL),
        [(0.3, 0.5, 2.0, -1.0, 3.0, 0.5 + 2 * z) for z in (-5.0, -0.5, *SCALES)],
        blended(scaled(gumbel), 2),
        units=200,
        shares=True,
    ),
}
NAMES = list(FAMILIES)
LATE = set(NAMES[NAMES.index("negative-normal") :])
LATE -= {"gumbel", "hurdle-counts", "mixture", "mixture-poisson"}
STEP = mpf("1e-25")


def slope_of(low, high, width):
    slope = (high - low) / width
    return float(slope) if abs(slope) > 1e-40 else 0.0  # of which the digits may not be enough


@functools.cache
def expected(name):
    """Rows of float32 ``[N, P + 1]``, values ``[N, 3]`` and slopes ``[N, 3, P + 1]`` in float64."""
    family = FAMILIES[name]
    rows = np.array(family.rows, np.float32)
    values, slopes = [], []
    with mpmath.workdps(90):
        for row in rows:
            point = [mpf(float(v)) for v in row]
            if family.exact:
                here, exact = family.law(*point)
                values.append([float(v) for v in here])
                slopes.append([[float(v) for v in own] for own in exact])
                continue
            here = family.law(*point)
            values.append([float(v) for v in here])
            columns = []
            for i, x in enumerate(point[: None if family.moves else -1]):
                ends = []
                for sign in (-1, 1):
                    moved = list(point)
                    moved[i] = x + sign * STEP * max(abs(x), mpf(1) / 100)
                    ends.append((moved[i], family.law(*moved)))
                (x0, low), (x1, high) = ends
                columns.append(
                    [
                        slope_of(a, b, x1 - x0) if mpmath.isfinite(v) else 0.0
                        for a, b, v in zip(low, high, here, strict=True)
                    ]
                )
            if not family.moves:
                columns.append([0.0] * 3)
            slopes.append(np.array(columns).T)
    return rows, np.array(values), np.array(slopes)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(name, columns):
    family = FAMILIES[name]

    def of(columns):
        *parameters, y = columns
        density = family.make(**dict(zip(family.names, parameters, strict=True)))
        return [getattr(density, output)(y) for output in ("marginal_log_prob", *OUTPUTS[1:])]

    values, change = jax.linearize(of, columns)
    one, none = jnp.ones_like(columns[0]), jnp.zeros_like(columns[0])
    count = len(columns)
    units = [jnp.stack([one if i == j else none for j in range(count)]) for i in range(count)]
    forward = jax.vmap(change)(units)
    back = jax.linear_transpose(change, columns)
    ones = [jnp.stack([one if i == j else none for j in range(3)]) for i in range(3)]
    return values, forward, jax.vmap(back)(ones)[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.nightly if name in LATE else ()) for name in FAMILIES],
)
def test_values_and_slopes(name, dtype):
    """To so many rounding units of themselves, and of the exponent of what they are made of."""
    rows, exact, slopes = expected(name)
    columns = [jnp.asarray(column.astype(dtype))[:, None] for column in rows.T]
    values, forward, reverse = jax.tree.map(np.asarray, evaluate(name, columns))
    values = np.stack(values)[..., 0].T
    forward = np.stack(forward)[..., 0].transpose(2, 0, 1)
    reverse = np.stack(reverse)[..., 0].transpose(2, 1, 0)
    eps, tiny, largest = (float(v) for v in (np.finfo(dtype).eps, 1e-30, np.finfo(dtype).max))
    # Of a tail that is nearly one the logarithm is the other one, an exponential.
    exponent = np.max(np.where(np.isfinite(exact), np.minimum(abs(exact), 1e3), 0), axis=1)
    nearly_all = (exact > -0.5) & np.array([False, True, True])
    exponent = exponent[:, None]
    units, shares = FAMILIES[name].units, FAMILIES[name].shares
    room = units * eps * (1 + nearly_all * exponent)
    steep = np.maximum(room, units * eps * (1 + shares * exponent))[..., None]
    unit = np.array([1.0, 0, 0])  # a log-density that is close to zero is a sum of larger numbers
    for found, value, size in (
        (values, exact, room * (abs(exact) + unit)),
        (forward, slopes, steep * abs(slopes)),
        (reverse, slopes, steep * abs(slopes)),
    ):
        assert found.dtype == dtype
        with np.errstate(invalid="ignore"):
            value = np.where(abs(value) > largest, np.sign(value) * np.inf, value)
            error = np.where(found == value, 0, abs(found - value) / (size + tiny))
        worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error)), error.shape)
        assert np.all(error <= 1), (rows[worst[0]], worst[1:], found[worst], value[worst])
