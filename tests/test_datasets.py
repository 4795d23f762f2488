"""The inverse problem's exact density, against quadrature by another library."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate

from jaxmdn.datasets import InverseProblem


def test_exact_conditional_density_against_adaptive_quadrature():
    problem = InverseProblem(noise_scale=0.07)
    x, t = problem.sample(jax.random.key(0), 20)
    values = problem.log_prob(x, t)
    for i in range(20):

        def likelihood(target, x=float(x[i, 0])):
            forward = target + 0.3 * np.sin(2 * np.pi * target)
            return np.exp(-0.5 * ((x - forward) / 0.07) ** 2)

        evidence, _ = integrate.quad(likelihood, 0, 1, points=[float(t[i, 0])], limit=200)
        expected = np.log(likelihood(float(t[i, 0])) / evidence)
        np.testing.assert_allclose(values[i], expected, rtol=1e-7)


def test_density_is_zero_outside_the_unit_interval():
    outside = jnp.array([[-0.1], [1.2]])
    assert np.isneginf(InverseProblem().log_prob(jnp.zeros((2, 1)), outside)).all()


def test_samples_follow_the_forward_map():
    x, t = InverseProblem(noise_scale=0.01).sample(jax.random.key(1), 2000)
    residual = np.asarray(x - t - 0.3 * jnp.sin(2 * jnp.pi * t))
    assert abs(residual.std() - 0.01) < 1e-3
    assert 0 <= float(t.min()) < float(t.max()) <= 1
