"""Sine and cosine in turns against 60 digits: values and slopes, near their zeros and far out."""

import jax
import numpy as np
import pytest
from oracles import mp

from jaxmdn.special.waves import cos_turns, sin_half, sin_turns

TURNS = np.concatenate(
    [
        [
            0.0,
            -0.0,
            0.25,
            0.5,
            0.75,
            1.0,
            -0.25,
            1e-30,
            3.0 + 2.0**-20,
            1234.5,
            4e6 + 0.5,
            8388609.0,
        ],
        np.random.default_rng(0).normal(size=300) * np.repeat([0.2, 3.0, 1e4], 100),
    ]
)


@jax.jit
def answers(turns):
    def each(u):
        waves = (cos_turns(u), sin_turns(u))
        slopes = (jax.grad(cos_turns)(u), jax.grad(sin_turns)(u))
        return *waves, *slopes, jax.jvp(jax.grad(cos_turns), (u,), (u / u,))[1]

    return jax.vmap(each)(turns)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_waves_and_their_slopes(dtype):
    turns = TURNS[TURNS != 0].astype(dtype)
    with mp.workdps(60):
        angles = [2 * mp.pi * mp.mpf(float(u)) for u in turns]
        cosine, sine = (np.array([f(a) for a in angles], float) for f in (mp.cos, mp.sin))
    circle = 2 * np.pi
    expected = (cosine, sine, -circle * sine, circle * cosine, -(circle**2) * cosine)
    eps = float(np.finfo(dtype).eps)
    for found, exact in zip(answers(turns), expected, strict=True):
        assert found.dtype == dtype
        # Close to a zero as many digits as elsewhere: that is what reduction in turns is for.
        np.testing.assert_allclose(found, exact, rtol=6 * eps, atol=1e-35)


def test_ends():
    cosine, sine = jax.jit(lambda u: (cos_turns(u), sin_turns(u)))(
        np.array([0.0, np.nan, np.inf, -np.inf])
    )
    assert (cosine[0], sine[0]) == (1, 0)
    half = np.linspace(0, 0.5, 41)
    np.testing.assert_allclose(
        jax.jit(sin_half)(half), np.sin(2 * np.pi * half), rtol=1e-14, atol=2e-16
    )
    assert np.all(np.isnan([cosine[1:], sine[1:]]))
