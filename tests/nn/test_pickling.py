"""Heads, densities and networks travel: by pickle, cloudpickle, joblib and as copies."""

import copy
import io
import pickle
import pickletools

import cloudpickle
import head_cases
import jax
import jax.numpy as jnp
import joblib
import numpy as np
import pytest
from flax import nnx
from questions import FAMILIES

import jaxmdn
from jaxmdn import FactorizedHead, Family, IndependentHead, NormalHead
from jaxmdn.components import Univariate, family, positive

pytestmark = [pytest.mark.usefixtures("as_users_run"), pytest.mark.version]


def through_joblib(value):
    stream = io.BytesIO()
    joblib.dump(value, stream)
    stream.seek(0)
    return joblib.load(stream)


WAYS = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "oldest protocol": lambda value: pickle.loads(pickle.dumps(value, protocol=2)),
    "cloudpickle": lambda value: pickle.loads(cloudpickle.dumps(value)),
    "joblib": through_joblib,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert isinstance(a, jax.Array)
        assert a.dtype == b.dtype
        assert np.array_equal(plain(a), plain(b))


def plain(array):
    return jax.random.key_data(array) if is_key(array) else array


def is_key(array):
    return jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key)


def filled(shapes):
    """Arrays of these shapes, without a compiled program."""

    def fill(number, leaf):
        if is_key(leaf):
            return jax.random.wrap_key_data(np.arange(2, dtype=np.uint32) + number)
        values = number + 1 / (1 + np.arange(leaf.size).reshape(leaf.shape))
        return jnp.asarray(values.astype(leaf.dtype))

    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [fill(i, leaf) for i, leaf in enumerate(leaves)])


@family
class Halved(Univariate):
    """A family of somebody else's."""

    scale: jax.Array = positive()

    def log_prob(self, y):
        return jnp.log(self.scale)


HEADS = {
    **{case.name: case.make(3, 2) for case in head_cases.CONTINUOUS + head_cases.DISCRETE},
    **{name: FactorizedHead(name, 2) for name in FAMILIES},
    "constants": FactorizedHead((Family("student_t", df=4.0), Family("hurdle", base="gamma")), 2),
    "independent": IndependentHead((NormalHead(2, 1), FactorizedHead("poisson", 3))),
    "own family": FactorizedHead(Halved, 2),
}


@every_way
def test_heads_and_densities(way):
    for head in HEADS.values():
        assert way(head) == head
        density = filled(head.density_shape)
        assert_same(way(density), density)


def twice(x):
    return 2.0 * x


NETWORKS = {
    "plain": lambda rngs: jaxmdn.nn.MDN(3, NormalHead(2, 1), rngs=rngs, hidden_features=(4,)),
    "dropout": lambda rngs: jaxmdn.nn.MDN(3, NormalHead(2, 1), dropout=0.1, rngs=rngs),
    "function": lambda rngs: jaxmdn.nn.MDN(3, NormalHead(2, 1), activation=twice, rngs=rngs),
    "autoregressive": lambda rngs: jaxmdn.nn.AutoregressiveMDN(
        3, (NormalHead(2, 1), FactorizedHead("gamma", 2)), rngs=rngs
    ),
    "own trunk": lambda rngs: jaxmdn.nn.MDN.from_trunk(
        nnx.Linear(3, 4, rngs=rngs), 4, NormalHead(2, 1), rngs=rngs
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    model = nnx.eval_shape(lambda: NETWORKS[name](nnx.Rngs(7)))
    nnx.update(model, filled(nnx.state(model)))
    for change in (model.train, model.eval):
        change()
        ways = WAYS if name == "plain" else {"pickle": WAYS["pickle"]}
        for way in ways.values():
            other = way(model)
            assert nnx.graphdef(other) == nnx.graphdef(model)
            assert_same(nnx.state(other), nnx.state(model))


def test_a_pickle_names_nothing_that_is_private_to_jax():
    for name, build in NETWORKS.items():
        if name in ("own trunk", "function"):
            continue
        model = nnx.eval_shape(lambda build=build: build(nnx.Rngs(0)))
        nnx.update(model, filled(nnx.state(model)))
        words = [arg for _, arg, _ in pickletools.genops(pickle.dumps(model)) if arg is not None]
        named = {word.partition(".")[0] for word in words if isinstance(word, str)}
        assert not named & {"jax", "jaxlib", "flax", "ml_dtypes"}
        assert "jaxmdn" in named


def test_a_known_function_goes_by_its_name():
    for function in (jax.nn.silu, jnp.tanh, nnx.gelu):
        model = nnx.eval_shape(
            lambda f=function: jaxmdn.nn.MDN(3, NormalHead(2), activation=f, rngs=nnx.Rngs(0))
        )
        assert model.config()["activation"] == function.__name__


def test_a_function_that_cannot_be_imported_is_named():
    model = nnx.eval_shape(
        lambda: jaxmdn.nn.MDN(3, NormalHead(2, 1), activation=lambda x: x, rngs=nnx.Rngs(0))
    )
    for dumps in (pickle.dumps, cloudpickle.dumps):
        with pytest.raises(pickle.PicklingError, match=r"activation is .*lambda.* cannot be imp"):
            dumps(model)
