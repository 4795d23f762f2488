"""The families that the contract runs over: a new one is one entry here."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from contract import Case
from oracle_circular import CIRCULAR
from oracle_continuous import LD, ByLogit, Integrated, Law
from oracle_counts import (
    LEVELS,
    Counts,
    RoundedLogistic,
    ZeroLaw,
    base_table,
    discretized,
    hurdled,
    inflated,
    negative_binomial,
    no_or_yes,
)
from oracle_hurdle import HurdleOf
from scipy import special, stats

from jaxmdn.components import (
    AsymmetricLaplace,
    Bernoulli,
    Beta,
    DiscretizedLogistic,
    Gamma,
    Hurdle,
    Laplace,
    Logistic,
    LogitNormal,
    LogNormal,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
    TruncatedNormal,
    VonMises,
    Weibull,
    ZeroInflated,
)

log, loggamma = np.log, special.loggamma
LOG_2PI = log(2 * np.pi)


def normal(size=1.0):
    return lambda rng, shape: size * rng.normal(size=shape)


def log_uniform(low, high):
    return lambda rng, shape: np.exp(rng.uniform(log(low), log(high), shape))


def log1p(x):
    """NumPy's own of complex numbers is the logarithm of ``1 + x``."""
    return 2 * np.arctanh(x / (2 + x))


def absolute(z):
    return z * np.where(np.real(z) < 0, -1, 1)


# Moments that families can have.


def any_moments(rng, shape):
    return rng.normal(size=shape), np.exp(rng.normal(size=shape))


def positive_moments(rng, shape):
    mean = np.exp(rng.normal(size=shape))
    return mean, (mean * np.exp(rng.uniform(-5, 0.5, shape))) ** 2


def bounded_moments(lower, upper, most=0.6):
    def moments(rng, shape):
        x = rng.uniform(0.05, 0.95, shape)
        share = rng.uniform(0.01, most, shape)
        return lower + (upper - lower) * x, (upper - lower) ** 2 * x * (1 - x) * share

    return moments


def count_moments(rng, shape):
    mean = np.exp(rng.uniform(-3, 8, shape))
    return mean, mean + mean**2 * np.exp(rng.uniform(-1, 3, shape))


# ------------------------------------------------------------------------------ the real line

REAL = {"loc": normal(2), "scale": log_uniform(0.3, 3)}


def standard(formula):
    """The log-density of ``loc + scale z``."""
    return lambda y, loc, scale, **shape: formula((y - loc) / scale, **shape) - log(scale)


def student(z, df):
    return (
        loggamma((df + 1) / 2)
        - loggamma(df / 2)
        - log(df * np.pi) / 2
        - (df + 1) / 2 * np.log1p(z * z / df)
    )


def student_moments(loc, scale, df):
    some, finite = np.real(df) > 1, np.real(df) > 2
    variance = np.where(finite, scale**2 * df / (df - 2), np.where(some, np.inf, np.nan))
    return np.where(some, loc + 0 * df, np.nan), variance


class Student:
    """SciPy's, but for quantiles beyond the range of its own."""

    def __init__(self, loc, scale, df):
        self.law, self.loc, self.scale, self.df = stats.t(df, loc, scale), loc, scale, df
        for name in ("cdf", "sf", "logcdf", "logsf", "logpdf"):
            setattr(self, name, getattr(self.law, name))

    def isf(self, p):
        x = special.betaincinv(self.df / 2, 0.5, 2 * np.minimum(p, 1 - p))
        z = np.sqrt(self.df * (1 - x) / x)
        return self.loc + self.scale * np.where(p < 0.5, z, -z)

    def ppf(self, p):
        return 2 * self.loc - self.isf(p)


class StudentLaw(Law):
    def deviation(self, parameters, values):
        return parameters["scale"]  # there may be no other


def skewed(z, asymmetry):
    slope = np.where(np.real(z) < 0, -1 / asymmetry, asymmetry)
    return -z * slope - log(asymmetry + 1 / asymmetry)


def of_scipy(law, formula, **options):
    """A location-scale family: SciPy's standard member, and the log-density of it."""

    def frozen(loc, scale, **shape):
        return law(*shape.values(), loc=loc, scale=scale)

    return Law(frozen, standard(formula), **options)


NORMAL = of_scipy(stats.norm, lambda z: -0.5 * (z * z + LOG_2PI))
STUDENT = StudentLaw(Student, standard(student), closed_moments=student_moments)
SKEWED = of_scipy(
    stats.laplace_asymmetric,
    skewed,
    split=lambda asymmetry, **_: asymmetry**2 / (1 + asymmetry**2),
)
REAL_LINE = [
    Case("normal", Normal, REAL, NORMAL, moments=any_moments),
    Case(
        "laplace",
        Laplace,
        REAL,
        of_scipy(stats.laplace, lambda z: -absolute(z) - log(2)),
        kink="loc",
        moments=any_moments,
    ),
    Case(
        "logistic",
        Logistic,
        REAL,
        of_scipy(stats.logistic, lambda z: -absolute(z) - 2 * np.log1p(np.exp(-absolute(z)))),
        moments=any_moments,
    ),
    Case(
        "student-t",
        StudentT,
        {**REAL, "df": log_uniform(0.8, 40)},
        STUDENT,
        slope_units={"any": 1200},
        moments=any_moments,
    ),
    Case(
        "asymmetric-laplace",
        AsymmetricLaplace,
        {**REAL, "asymmetry": log_uniform(0.3, 3)},
        SKEWED,
        kink="loc",
        moments=any_moments,
        from_moments=partial(AsymmetricLaplace.from_moments, asymmetry=0.4),
    ),
]

# ----------------------------------------------------------------------------- positive numbers

GAMMA = Law(
    lambda concentration, rate: stats.gamma(concentration, scale=1 / rate),
    lambda y, concentration, rate: (
        concentration * log(rate)
        + (concentration - 1) * log(y)
        - rate * y
        - loggamma(concentration)
    ),
)
LOG_NORMAL = Law(
    lambda loc, scale: stats.lognorm(scale, scale=np.exp(loc)),
    lambda y, loc, scale: -0.5 * (((log(y) - loc) / scale) ** 2 + LOG_2PI) - log(scale * y),
)
WEIBULL = Law(
    lambda concentration, scale: stats.weibull_min(concentration, scale=scale),
    lambda y, concentration, scale: (
        log(concentration / scale)
        + (concentration - 1) * log(y / scale)
        - (y / scale) ** concentration
    ),
)
SHAPE = {"concentration": log_uniform(0.3, 30), "rate": log_uniform(0.3, 3)}
positive = partial(
    Case,
    bounds=(0, np.inf),
    outside=(-3.0, -1e-30, -1e-300),
    closed="scale",
    moments=positive_moments,
)
POSITIVE = [
    positive(
        "log-normal",
        LogNormal,
        {"loc": normal(), "scale": log_uniform(0.2, 1.5)},
        LOG_NORMAL,
        rescale=lambda c, loc, scale: {"loc": loc + log(c), "scale": scale},
    ),
    positive("gamma", Gamma, SHAPE, GAMMA),
    positive(
        "weibull",
        Weibull,
        {"concentration": log_uniform(0.5, 20), "scale": log_uniform(0.3, 3)},
        WEIBULL,
    ),
]

# ------------------------------------------------------------------------------- between bounds


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


def log_sigmoid(x):
    return np.where(np.real(x) < 0, x - np.log1p(np.exp(x)), -np.log1p(np.exp(-x)))


def outward(middle, width, *further):
    """Ends of pieces that grow with the distance from the middle."""
    steps = np.array([*np.arange(0, 4, 0.5), *range(4, 17), *further], LD)
    steps = steps.reshape(-1, *(1,) * np.ndim(middle)) * width
    return np.concatenate([middle - steps, middle + steps])


def beta_cuts(concentration1, concentration0):
    a, b = concentration1, concentration0
    return outward(log(a / b), np.sqrt(1 / a + 1 / b), 19, 23, 28, 34, 41, 50, 60, 75, 90)


def normal_cuts(loc, scale):
    return outward(loc, scale)


def beta(lower, upper):
    return ByLogit(
        lambda concentration1, concentration0: stats.beta(
            concentration1, concentration0, lower, upper - lower
        ),
        lambda y, concentration1, concentration0: (
            concentration1 * log_sigmoid(y) + concentration0 * log_sigmoid(-y)
        ),
        cuts=beta_cuts,
        lower=lower,
        upper=upper,
    )


def logit_normal(lower, upper):
    width = upper - lower

    def law(loc, scale):
        return Through(
            stats.norm(loc, scale),
            lambda x: lower + width * special.expit(x),
            lambda y: special.logit(np.clip((y - lower) / width, 0, 1)),
            lambda y: log(width) - log(y - lower) - log(upper - y),
        )

    def formula(y, loc, scale):
        return -0.5 * ((y - loc) / scale) ** 2

    return ByLogit(law, formula, cuts=normal_cuts, lower=lower, upper=upper)


def truncated(lower, upper):
    def cuts(loc, scale):
        ends = [outward(end + 0 * loc, scale) for end in (lower, upper) if np.isfinite(end)]
        return np.clip(np.concatenate([outward(loc, scale), *ends]), lower, upper)

    def law(loc, scale):
        return stats.truncnorm((lower - loc) / scale, (upper - loc) / scale, loc, scale)

    return Integrated(law, lambda y, loc, scale: -0.5 * ((y - loc) / scale) ** 2, cuts=cuts)


CONCENTRATIONS = dict.fromkeys(("concentration1", "concentration0"), log_uniform(0.5, 20))
NORMALS = {"loc": normal(2), "scale": log_uniform(0.3, 2)}


def bounded(name, family, draw, oracle, lower, upper, outside, **options):
    constants = {"lower": lower, "upper": upper}
    return Case(
        name,
        family,
        draw,
        oracle(lower, upper),
        constants,
        (lower, upper),
        outside,
        "none",
        moments=bounded_moments(lower, upper) if family is not TruncatedNormal else None,
        **options,
    )


# What is promised here: moments by a quadrature to 1e-11, tails that are differences to 1e-7.
BETA = {"slope_units": {"log_prob": 100, "curved": 100}}
LOGIT = {"units": {"mean": 100, "variance": 200}, "slope_units": {"mean": 100}}
LOGIT["recovered"] = (1e-3, 1e-3)
CUT = {"units": {"any": 100}, "slope_units": {"any": 100, "gradient": 20000}}
BOUNDED = [
    bounded("beta", Beta, CONCENTRATIONS, beta, 0.0, 1.0, (-1e-9, 1.0000001), **BETA),
    bounded("logit-normal", LogitNormal, NORMALS, logit_normal, -2.0, 3.0, (-2.1, 3.1), **LOGIT),
    bounded("truncated-normal", TruncatedNormal, NORMALS, truncated, -1.0, 1.5, (-1.1, 1.6), **CUT),
]
MOVED = [
    bounded("beta-moved", Beta, CONCENTRATIONS, beta, -2.0, 3.0, (-2.1, 3.1), **BETA),
    bounded(
        "unit-logit-normal", LogitNormal, NORMALS, logit_normal, 0.0, 1.0, (-1e-9, 1.1), **LOGIT
    ),
    bounded("positive-normal", TruncatedNormal, NORMALS, truncated, 0.0, np.inf, (-1e-9,), **CUT),
    bounded("negative-normal", TruncatedNormal, NORMALS, truncated, -np.inf, 0.5, (0.6,), **CUT),
]

# ------------------------------------------------------------------------------------ the circle


def across_the_cut(rng, shape):
    return np.where(
        rng.random(shape) < 0.3, rng.choice([-3.1, 3.1], shape), rng.uniform(-3, 3, shape)
    )


def any_concentration(rng, shape):
    return rng.choice([0, 1e-3, 0.3, 1, 4, 30, 1e4, 1e8], shape)


CIRCLE = [
    Case(
        "von-mises",
        VonMises,
        {"loc": across_the_cut, "concentration": any_concentration},
        CIRCULAR,
        bounds=(-np.pi, np.pi),
        closed="none",
        mixed={"loc": across_the_cut, "concentration": log_uniform(0.1, 40)},
        units={"level": 20},
        slope_units={"variance": 300},
        moments=lambda rng, shape: (np.zeros(shape), rng.uniform(1e-3, 3, shape)),
        recovered=(1e-7, 1e-4),
        mean_of=lambda y, loc, concentration: jnp.sin(y - loc - 0.7),
    )
]

# ---------------------------------------------------------------------------------------- counts


def log_counts(y, rate, concentration):
    """``prod_{i < y} (1 + i / r) m^y (1 + m / r)^-(r + y) / y!``"""
    m, r = rate, concentration
    rise = sum((i < y) * log1p(i / r) for i in range(int(np.max(np.real(y)))))
    return rise + y * log(m) - (r + y) * log1p(m / r) - loggamma(y + 1)


def log_poisson(y, rate):
    return y * log(rate) - rate - loggamma(y + 1)


def log_bernoulli(y, logit):
    return -np.log1p(np.exp(np.where(np.real(y) == 0, logit, -logit)))


def log_rounded(y, loc, scale):
    below, above = ((y + side - loc) / scale for side in (-1 / 16, 1 / 16))
    inner = log_sigmoid(above) + log_sigmoid(-below) + log(-np.expm1(below - above))
    first, last = -np.log1p(np.exp(-above)), -np.log1p(np.exp(below))
    return np.where(np.real(y) < -0.99, first, np.where(np.real(y) > 1.99, last, inner))


def log_inflated(y, logit, **parameters):
    base, rest = log_counts(y, **parameters), -np.log1p(np.exp(logit))
    at_zero = log(1 / (1 + np.exp(-logit)) + np.exp(rest + base))
    return np.where(np.real(y) == 0, at_zero, rest + base)


def log_hurdled(y, logit, **parameters):
    positive = -np.expm1(log_counts(0 * y, **parameters))
    other = log_counts(y, **parameters) - np.log1p(np.exp(logit)) - log(positive)
    return np.where(np.real(y) == 0, -np.log1p(np.exp(-logit)), other)


def logits(rng, shape):
    return np.where(rng.random(shape) < 0.3, rng.choice([-40.0, 40], shape), rng.normal(size=shape))


def zero_law(hurdle):
    return lambda logit, **base: ZeroLaw(negative_binomial(**base), logit, hurdle)


def over(kind, base):
    return lambda logit, **parameters: kind(base=base(**parameters), logit=logit)


RATES = {"rate": log_uniform(1e-3, 20)}
PAIRS = {**RATES, "concentration": log_uniform(0.5, 1e5)}
counts = partial(Case, bounds=(0.0, np.inf), outside=(-1.0, 0.5, 500.5), closed="none")
ROUNDED = Counts(discretized, RoundedLogistic, log_rounded, lattice=(-1.0, 0.125))
COUNTS = [
    counts(
        "poisson",
        Poisson,
        RATES,
        Counts(base_table, lambda rate: stats.poisson(rate), log_poisson),
        units={"log_prob": 6},
    ),
    counts(
        "negative-binomial",
        NegativeBinomial,
        PAIRS,
        Counts(base_table, negative_binomial, log_counts),
        units={"log_prob": 6, "log_cdf": 30},
        moments=count_moments,
        recovered=(1e-14, 5e-6),
    ),
    Case(
        "bernoulli",
        Bernoulli,
        {"logit": lambda rng, shape: rng.choice([1, 12], shape) * rng.normal(size=shape)},
        Counts(no_or_yes, lambda logit: stats.bernoulli(special.expit(logit)), log_bernoulli),
        bounds=(0.0, 1.0),
        outside=(-1.0, 0.5, 2.0),
        closed="none",
    ),
    Case(
        "discretized-logistic",
        DiscretizedLogistic,
        {"loc": lambda rng, shape: rng.uniform(-2, 3, shape), "scale": log_uniform(1e-2, 3)},
        ROUNDED,
        LEVELS,
        bounds=(-1.0, 2.0),
        outside=(-1.125, 0.1, 2.125),
        closed="none",
        units={"variance": 40},
    ),
    counts(
        "zero-inflated",
        over(ZeroInflated, NegativeBinomial),
        {**PAIRS, "logit": logits},
        Counts(inflated(base_table), zero_law(False), log_inflated),
    ),
    counts(
        "hurdle",
        over(Hurdle, NegativeBinomial),
        {**PAIRS, "logit": logits},
        Counts(hurdled(base_table), zero_law(True), log_hurdled, truncated=True),
    ),
]

# ------------------------------------------------------------------- hurdles before real numbers

HURDLES = [
    Case(
        "hurdle-gamma",
        over(Hurdle, Gamma),
        {**SHAPE, "logit": logits},
        HurdleOf(GAMMA),
        bounds=(0.0, np.inf),
        outside=(-1.5,),
        closed="scale",
        units={"level": 60},
    ),
    Case(
        "hurdle-log-normal",
        over(Hurdle, LogNormal),
        {"loc": normal(), "scale": log_uniform(0.2, 1.5), "logit": logits},
        HurdleOf(LOG_NORMAL),
        bounds=(0.0, np.inf),
        outside=(-1.5,),
        closed="scale",
        units={"level": 60},
        rescale=lambda c, loc, **rest: {"loc": loc + log(c), **rest},
    ),
    Case(
        "hurdle-normal",
        over(Hurdle, Normal),
        {**REAL, "logit": logits},
        HurdleOf(NORMAL, False),
        closed="scale",
        units={"level": 60},
    ),
]

CASES = [*REAL_LINE, *POSITIVE, *BOUNDED, *CIRCLE, *COUNTS, *HURDLES]
BY_NAME = {case.name: case for case in (*CASES, *MOVED)}
