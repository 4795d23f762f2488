"""Parts of an ensemble side by side in threads, and when they are not."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
from test_ensemble import RECIPE, table

from jaxmdn import meshes, train
from jaxmdn.train.threads import num_parts, side_by_side

PARTS = [(1,), (2,), (3,)]


def where(part, barrier=None):
    if barrier is not None:
        barrier.wait(10)  # until all of them are there
    return part, threading.get_ident()


def test_parts_run_at_the_same_time_in_their_order():
    barrier = threading.Barrier(3)
    found = side_by_side(lambda part: where(part, barrier), PARTS, compiled=True)
    assert [part for part, _ in found] == [1, 2, 3]
    assert len({thread for _, thread in found}) == 3


@pytest.mark.parametrize(
    "setting", [lambda: jax.debug_nans(True), lambda: jax.default_matmul_precision("float32")]
)
def test_settings_of_this_thread_keep_the_parts_in_it(setting):
    with setting():
        found = side_by_side(where, PARTS, compiled=True)
    assert found == [(part, threading.get_ident()) for (part,) in PARTS]
    assert side_by_side(where, PARTS, compiled=False) == found


def test_what_a_part_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda part: 1 // (part - 2), PARTS, compiled=True)


def test_parts_are_equal_and_of_one_cpu(monkeypatch):
    monkeypatch.setattr(meshes, "cores", lambda: 8)
    cpu = jax.local_devices(backend="cpu")[:1]
    assert [num_parts(count, cpu) for count in (20, 12, 7, 11)] == [5, 6, 7, 1]
    assert num_parts(20, cpu * 2) == 1


@pytest.mark.nightly
@pytest.mark.usefixtures("as_users_run")
def test_an_ensemble_in_parts_is_the_ensemble(monkeypatch):
    x, y = table()
    recipe = dataclasses.replace(RECIPE, cycles=(5,))  # of two, one end or both may be kept: a tie
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(meshes, "cores", lambda cores=cores: cores)
        found.append(train.fit_ensemble(x, y, recipe=recipe, progress=False))
    leaves = (jax.tree.leaves(one.networks) for one in found)
    for leaf, expected in zip(*leaves, strict=True):
        np.testing.assert_allclose(leaf, expected, atol=1e-5)
    # Temperatures are fitted until a slope is small: see test_ensemble.
    np.testing.assert_allclose(*(np.mean(one.log_prob(x, y)) for one in found), atol=3e-4)
