"""How large a program a user compiles: no public function may be longer than its budget."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmdn
from jaxmdn import components

# Instructions of StableHLO, functions counted as often as they are called; about a tenth of room.
FUNCTIONS = {
    "log_prob": (150, lambda m, y, key: jaxmdn.log_prob(m, y)),
    "sample": (630, lambda m, y, key: jaxmdn.sample(key, m)),
    "cdf": (150, lambda m, y, key: jaxmdn.cdf(m, y)),
    "log_survival": (310, lambda m, y, key: jaxmdn.log_survival(m, y)),
    "quantile": (1300, lambda m, y, key: jaxmdn.quantile(m, 0.3)),
    "hdr_intervals": (3700, lambda m, y, key: jaxmdn.hdr_intervals(m, 0.9)),
    "hdr_threshold": (3600, lambda m, y, key: jaxmdn.hdr_threshold(m, 0.9)),
    "hdr_level": (3400, lambda m, y, key: jaxmdn.hdr_level(m, y)),
    "modes": (3100, lambda m, y, key: jaxmdn.modes(m)),
    "crps": (500, lambda m, y, key: jaxmdn.crps(m, y)),
    "energy_score": (1150, lambda m, y, key: jaxmdn.energy_score(key, m, y)),
    "kl_divergence": (1000, lambda m, y, key: jaxmdn.kl_divergence(key, m, m)),
}
PLANE = {
    "condition": (440, lambda m, y, key: jaxmdn.condition(m, (0,), y[:, :1])),
    "product": (900, lambda m, y, key: jaxmdn.product(m, m)),
    "nll gradient": (
        280,
        lambda m, y, key: jax.grad(
            lambda raw: jaxmdn.nll(jaxmdn.NormalHead(8, 2, covariance="full"), raw, y)
        )(jnp.zeros((4, 48), y.dtype)),
    ),
}
# Quantiles of mixtures; a family's own functions weigh on them.
QUANTILES = {
    "AsymmetricLaplace": 830,
    "Beta": 3800,
    "DiscretizedLogistic": 860,
    "Gamma": 2800,
    "Laplace": 750,
    "LogNormal": 1450,
    "Logistic": 780,
    "LogitNormal": 1600,
    "NegativeBinomial": 2900,
    "Poisson": 1800,
    "StudentT": 2400,
    "TruncatedNormal": 4100,
    "VonMises": 4850,
    "Weibull": 910,
}


def count(function, *arguments):
    """Instructions of the lowered program, calls expanded."""
    text = jax.jit(function).lower(*arguments).as_text()
    bodies, sizes = {}, {}
    for body in re.split(r"\n  func\.func ", text)[1:]:
        bodies[re.match(r"(?:public |private )?@([\w.]+)", body)[1]] = body

    def size(name):
        if name not in sizes:
            body = bodies[name]
            called = re.findall(r"(?<!custom_)call @([\w.]+)\(", body)
            sizes[name] = body.count(" = ") + sum(map(size, called))
        return sizes[name]

    return size("main")


def mixture_of(family, D=1):
    """Eight components, every parameter in (0.5, 2), bounds around them."""
    rng = np.random.default_rng(0)
    fields = {
        field.name: jnp.asarray(rng.uniform(0.5, 2.0, (4, 8, D)), jnp.float32)
        for field in dataclasses.fields(family)
        if not field.metadata.get("static")
    }
    bounds = {"lower": -1.0, "upper": 3.0}
    fields |= {name: jnp.full((1, 1), bounds[name], jnp.float32) for name in bounds & fields.keys()}
    return jaxmdn.Mixture(logits=jnp.zeros((4, 8), jnp.float32), components=family(**fields))


def check(found, budget, name):
    print(f"{name}: {found} instructions of {budget}")
    assert found <= budget, f"{name} lowers to {found} instructions, its budget is {budget}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_a_normal_mixture(name):
    budget, function = FUNCTIONS[name]
    arguments = mixture_of(components.Normal), jnp.zeros((4, 1), jnp.float32), jax.random.key(0)
    check(count(function, *arguments), budget, name)


@pytest.mark.parametrize("name", PLANE)
def test_functions_of_a_mixture_of_full_normals(name):
    budget, function = PLANE[name]
    mixture = jaxmdn.NormalHead(8, 2, covariance="full")(jnp.zeros((4, 48), jnp.float32))
    arguments = mixture, jnp.zeros((4, 2), jnp.float32), jax.random.key(0)
    check(count(function, *arguments), budget, name)


@pytest.mark.parametrize("family", QUANTILES)
def test_quantiles_of_other_families(family):
    mixture = mixture_of(getattr(components, family))
    found = count(lambda m: jaxmdn.quantile(m, 0.3), mixture)
    check(found, QUANTILES[family], f"quantile of {family}")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["modes", "hdr_intervals"])
def test_memory_grows_with_the_components_not_with_their_square(name):
    function = {"modes": jaxmdn.modes, "hdr_intervals": lambda m: jaxmdn.hdr_intervals(m, 0.9)}[
        name
    ]

    def memory(K):
        shape = jax.ShapeDtypeStruct((8, K, 1), jnp.float32)
        normal = components.Normal(loc=shape, scale=shape)
        logits = jax.ShapeDtypeStruct((8, K), jnp.float32)
        mixture = jaxmdn.Mixture(logits=logits, components=normal)
        return jax.jit(function).lower(mixture).compile().memory_analysis().temp_size_in_bytes

    few, many = memory(128), memory(512)
    print(f"{name}: {few / 2**20:.0f} MiB at K = 128, {many / 2**20:.0f} at K = 512")
    assert many < 6 * few
    assert many < 30 * 2**20
