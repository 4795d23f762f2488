"""Targets whose level follows x, of every family: how to draw them, and SciPy's log-densities."""

import numpy as np
from scipy import special, stats

from jaxmdn.heads import Family

SCALES = (1e-6, 1e-3, 1.0, 1e3, 1e6)
COUNTS = (1.0, 1e2, 1e4, 2e5, 1e6)


class Law:
    """One distribution a row: ``draw(rng)`` and ``log_prob(y)``."""

    def __init__(self, frozen, discrete=False):
        self.frozen, self.discrete = frozen, discrete
        self.log_prob = frozen.logpmf if discrete else frozen.logpdf

    def draw(self, rng):
        return np.asarray(self.frozen.rvs(random_state=rng), float)


class LogitNormal:
    def __init__(self, loc, scale, width):
        self.loc, self.scale, self.width = loc, scale, width

    def draw(self, rng):
        return self.width * special.expit(rng.normal(self.loc, self.scale))

    def log_prob(self, y):
        u = y / self.width
        inner = stats.norm.logpdf(special.logit(u), self.loc, self.scale)
        return inner - np.log(u * (1 - u)) - np.log(self.width)


class Levels:
    """A logistic variable rounded to 256 levels, ``step`` apart."""

    def __init__(self, loc, scale, step):
        self.law, self.step = stats.logistic(loc, scale), step

    def draw(self, rng):
        return self.step * np.clip(np.round(self.law.rvs(random_state=rng)), 0, 255)

    def log_prob(self, y):
        level = np.round(y / self.step)
        below = np.where(level == 0, 0, self.law.cdf(level - 0.5))
        return np.log(np.where(level == 255, 1, self.law.cdf(level + 0.5)) - below)


class Zeros:
    """A base with a fifth of (further) zeros; of a hurdle they are all there are."""

    def __init__(self, base, hurdle):
        self.base, self.hurdle = base, hurdle

    def draw(self, rng):
        y = self.base.draw(rng)
        while self.hurdle and np.any(y == 0):
            y = np.where(y == 0, self.base.draw(rng), y)
        return np.where(rng.random(y.shape) < 0.2, 0, y)

    def log_prob(self, y):
        zero, rest = np.log(0.2), np.log(0.8)
        some = self.base.log_prob(np.where(y == 0, 1, y))
        none = self.base.log_prob(0 * y) if self.base.discrete else -np.inf
        if self.hurdle:
            return np.where(y == 0, zero, rest + some - np.log(-np.expm1(none)))
        return np.where(y == 0, np.logaddexp(zero, rest + none), rest + some)


def truncated(lower, upper, loc, scale):
    return Law(stats.truncnorm((lower - loc) / scale, (upper - loc) / scale, loc, scale))


def poisson(level):
    return Law(stats.poisson(level), discrete=True)


def negative_binomial(level):
    return Law(stats.nbinom(10, 10 / (10 + level)), discrete=True)


def gamma(level, shape=10):
    return Law(stats.gamma(shape, scale=level / shape))


def around(law, *shape):
    return lambda x, s: Law(law(*shape, loc=s * x, scale=0.3 * s))


def of_level(law):
    return lambda x, s: law(s * np.exp(x / 2))


# Name: the head's family at a scale, the law of the targets given x, the scales.
CASES = {
    "normal": ("normal", around(stats.norm), SCALES),
    "laplace": ("laplace", around(stats.laplace), SCALES),
    "logistic": ("logistic", around(stats.logistic), SCALES),
    "student_t": ("student_t", around(stats.t, 4.0), SCALES),
    "asymmetric_laplace": ("asymmetric_laplace", around(stats.laplace_asymmetric, 1.5), SCALES),
    "lognormal": ("lognormal", of_level(lambda m: Law(stats.lognorm(0.3, scale=m))), SCALES),
    "weibull": ("weibull", of_level(lambda m: Law(stats.weibull_min(3, scale=m))), SCALES),
    "gamma": ("gamma", of_level(gamma), SCALES),
    "gamma_fine": ("gamma", of_level(lambda m: gamma(m, 1e3)), SCALES),
    "beta": (
        lambda s: Family("beta", lower=0.0, upper=s),
        lambda x, s: Law(stats.beta(20 * special.expit(x), 20 * special.expit(-x), 0, s)),
        SCALES,
    ),
    "logit_normal": (
        lambda s: Family("logit_normal", lower=0.0, upper=s),
        lambda x, s: LogitNormal(x, 0.4, s),
        SCALES,
    ),
    "truncated_normal": (
        "truncated_normal",
        lambda x, s: truncated(0, np.inf, s * np.exp(x / 2), 0.05 * s),
        (*SCALES, 2e5),
    ),
    "truncated_on_both_sides": (
        lambda s: Family("truncated_normal", lower=0.0, upper=s),
        lambda x, s: truncated(0, s, s * special.expit(x), 0.2 * s),
        SCALES,
    ),
    "discretized_logistic": (
        lambda s: Family("discretized_logistic", lower=0.0, upper=255 * s, num_bins=256),
        lambda x, s: Levels(128 + 60 * np.tanh(x), 8, s),
        SCALES,
    ),
    "von_mises": ("von_mises", lambda x, s: Law(stats.vonmises(10, loc=x)), (1.0,)),
    "bernoulli": (
        "bernoulli",
        lambda x, s: Law(stats.bernoulli(special.expit(x)), discrete=True),
        (1.0,),
    ),
    "poisson": ("poisson", of_level(poisson), (0.1, *COUNTS)),
    "negative_binomial": ("negative_binomial", of_level(negative_binomial), (0.1, *COUNTS, 5e4)),
    "zero_inflated": ("zero_inflated", of_level(lambda m: Zeros(poisson(m), False)), COUNTS),
    "zero_inflated_wide": (
        Family("zero_inflated", base="negative_binomial"),
        of_level(lambda m: Zeros(negative_binomial(m), False)),
        COUNTS,
    ),
    "hurdle": ("hurdle", of_level(lambda m: Zeros(gamma(m), True)), SCALES),
    "hurdle_of_counts": (
        Family("hurdle", base="poisson"),
        of_level(lambda m: Zeros(poisson(m), True)),
        COUNTS,
    ),
}


def family_of(name, scale):
    family = CASES[name][0]
    return family(scale) if callable(family) else family
