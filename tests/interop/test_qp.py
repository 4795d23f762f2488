"""qp's ensembles both ways: its own densities where it is installed, a stand-in where it is not."""

import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxmdn

WEIGHTS = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]])
MEANS = np.array([[0.2, 1.0], [0.4, 2.0], [1.5, 0.0]])
STDS = np.array([[0.1, 0.3], [0.05, 0.2], [0.2, 1.0]])
GRID = np.linspace(0.0, 3.0, 31)
EXACT = sum(WEIGHTS[:, [k]] * stats.norm.pdf(GRID, MEANS[:, [k]], STDS[:, [k]]) for k in range(2))


class Ensemble:
    """What qp's own does, of which its documentation speaks."""

    def __init__(self, kind, data):
        self.kind, self.objdata = kind, data


@pytest.fixture(params=["installed", "stand-in"])
def qp(request, monkeypatch):
    if request.param == "installed":
        return pytest.importorskip("qp")
    module = types.SimpleNamespace(Ensemble=Ensemble, mixmod="mixmod")
    monkeypatch.setitem(sys.modules, "qp", module)
    return module


def test_there_and_back(qp):
    data = {"weights": WEIGHTS, "means": MEANS, "stds": STDS}
    mixture = jaxmdn.interop.from_qp(qp.Ensemble(qp.mixmod, data=data))
    assert mixture.batch_shape == (3,)
    found = jnp.exp(jaxmdn.log_prob(mixture, jnp.asarray(GRID)[:, None, None])).T
    np.testing.assert_allclose(found, EXACT, rtol=1e-12, atol=1e-300)
    again = jaxmdn.interop.to_qp(mixture)
    for name, values in data.items():
        np.testing.assert_allclose(again.objdata[name], values, rtol=1e-14)
    if not isinstance(again, Ensemble):
        np.testing.assert_allclose(again.pdf(GRID), EXACT, rtol=1e-12, atol=1e-300)


def test_shared_scales_are_spread(qp):
    normal = jaxmdn.components.Normal(loc=jnp.asarray(MEANS)[..., None], scale=jnp.full(1, 0.1))
    mixture = jaxmdn.Mixture(logits=jnp.zeros(2), components=normal)
    found = jaxmdn.interop.to_qp(mixture).objdata
    np.testing.assert_array_equal(found["stds"], np.full((3, 2), 0.1))
    np.testing.assert_array_equal(found["weights"], np.full((3, 2), 0.5))


def test_errors(qp, user_errors):
    student = jaxmdn.FactorizedHead("student_t", 2)(jnp.zeros((3, 8)))
    with pytest.raises(TypeError, match=r"to_qp: expected a mixture of normals .* got StudentT"):
        jaxmdn.interop.to_qp(student)
    with pytest.raises(TypeError, match=r"D = 2 and batch shape \[3\]"):
        jaxmdn.interop.to_qp(jaxmdn.NormalHead(1, 2)(jnp.zeros((3, 5))))
    with pytest.raises(TypeError, match=r"from_qp: expected a qp.Ensemble of qp.mixmod, got dict"):
        jaxmdn.interop.from_qp({})


def test_without_qp(monkeypatch):
    monkeypatch.setitem(sys.modules, "qp", None)
    with pytest.raises(ImportError, match=r"qp is not installed; .* pip install qp-prob"):
        jaxmdn.interop.to_qp(jaxmdn.NormalHead(1, 1)(jnp.zeros((3, 3))))
