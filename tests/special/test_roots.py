"""Bisections: against the numbers that they look for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmdn.special.roots import bisect, first_whole, halfway


@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 2**24), (np.float64, 2**40)])
def test_the_first_whole_number_is_found(dtype, most):
    rng = np.random.default_rng(0)
    goal = np.concatenate([np.arange(40), np.floor(np.exp(rng.uniform(0, np.log(most), 400)))])
    goal = goal.astype(dtype)
    reach = np.exp(rng.uniform(0, 8, len(goal)))
    upper = np.minimum(np.ceil(goal * reach + 1), most).astype(dtype)
    found = jax.jit(
        lambda goal, upper: first_whole(lambda k: k >= goal, jnp.full_like(upper, -1), upper)
    )
    np.testing.assert_array_equal(found(jnp.asarray(goal), jnp.asarray(upper)), goal)


def test_nothing_moves_at_the_end_of_the_road():
    # An accepted number may not be looked for at the lower end, which is not in the interval.
    ends = jnp.array([3.0]), jnp.array([4.0])
    low, high = bisect(
        lambda y: y >= 0, *ends, steps=60, middle=lambda a, b: jnp.floor(halfway(a, b))
    )
    assert (low[0], high[0]) == (3, 4)


def test_a_root_to_the_last_place():
    goal = jnp.array([1e-3, 0.3, 0.99])
    low, high = bisect(lambda y: y**3 >= goal, jnp.zeros(3), jnp.ones(3), steps=60)
    np.testing.assert_allclose(halfway(low, high), np.cbrt(goal), rtol=1e-15)
