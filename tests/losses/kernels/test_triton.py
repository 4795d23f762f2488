"""The GPU kernels: their numbers in the interpreter, and their code for CUDA, without a GPU.

The reference is float64 autodiff of each row's plain likelihood (``implementation="xla"``), at the
numbers that the kernel's dtype holds.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

import jaxmdn
from jaxmdn import NormalHead
from jaxmdn.heads import links
from jaxmdn.losses.kernels import chunked, dispatch, linear, rows, triton
from jaxmdn.losses.kernels.chunked import Batch, Blocks
from jaxmdn.losses.kernels.linear import Layer

# From JAX 0.12 on, lowering says that this backend will go.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")

KERNEL = "pallas_triton"
# What the module promises, in units of an array's largest entry: float32 rounding of chains of some
# tens of operations; a gradient rounded to 8 bits, and for a layer two rounded factors.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def close(actual, expected, tolerance, name=""):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    atol = tolerance * max(np.max(np.abs(expected), initial=0.0), 1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=name)


def wide(tree):
    return jax.tree.map(lambda x: np.asarray(x).astype(np.float64), tree)


@partial(jax.jit, static_argnums=0)
def reference(head, source, y, weights):
    """``sum(w nll)`` and its gradients; rows of weight zero are left out, whatever they hold."""

    def total(source, y, weights):
        y = jnp.where(weights[:, None] != 0, y, 0)
        raw = source
        if isinstance(source, Layer):
            raw = jnp.dot(source.hidden, source.kernel, precision="highest") + source.bias
        options = {"reduction": "sum", "implementation": "xla"}
        return jaxmdn.nll(head, raw, y, weights=weights, **options)

    return jax.value_and_grad(total, argnums=(0, 1, 2))(source, y, weights)


@partial(jax.jit, static_argnums=(0, 1))
def kernel(head, chunk_size, source, y, weights):
    def total(source, y, weights):
        batch = Batch(y, weights, weights != 0 if weights.shape[0] > 1 else None)
        if isinstance(source, Layer):
            config = linear.Config(head, chunk_size, "highest", KERNEL)
            return linear.weighted_nll(config, source, batch)
        return chunked.weighted_nll(head, Blocks(chunk_size, chunk_size, KERNEL), source, batch)

    return jax.value_and_grad(total, argnums=(0, 1, 2))(source, y, weights)


def compare(head, chunk_size, source, y, weights):
    dtype = jax.tree.leaves(source)[0].dtype
    value, gradients = kernel(head, chunk_size, source, y, weights)
    rows = np.broadcast_to(weights, y.shape[:1])
    expected, references = reference(head, *wide((source, y, rows)))
    assert value.dtype == jnp.float32
    close(value, expected, 1e-5)
    assert [g.dtype for g in jax.tree.leaves(gradients)] == [
        x.dtype for x in jax.tree.leaves((source, y, weights))
    ]
    if weights.shape[0] == 1:
        references = (*references[:2], np.sum(references[2], keepdims=True))
    gradients, references = jax.tree.leaves(gradients), jax.tree.leaves(references)
    for i, (actual, wanted) in enumerate(zip(gradients, references, strict=True)):
        close(actual, wanted, TOLERANCE[dtype.name], f"gradient {i}")


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    K: int
    D: int
    N: int
    options: Any
    dtype: Any = jnp.float32
    weighted: bool = False
    H: int = 0
    chunk_size: int | None = None

    def build(self):
        """Head, rows per block, source, targets and weights."""
        rng = np.random.default_rng([self.K, self.D, self.N])
        head = NormalHead(self.K, self.D, **self.options)
        draw = partial(rng.normal, 0.0, 1.0)
        y = jnp.asarray(draw((self.N, self.D)), jnp.float32)
        P = head.num_outputs
        if self.H:
            arrays = draw((self.N, self.H)), draw((self.H, P)) / self.H**0.5, draw(P)
            source = Layer(*(jnp.asarray(a, self.dtype) for a in arrays))
        else:
            source = jnp.asarray(draw((self.N, P)), self.dtype)
        weights = jnp.asarray([0.25], jnp.float32)
        if self.weighted:  # a third of the rows is left out, and may hold anything
            weights = rng.uniform(0.5, 2.0, self.N) * (np.arange(self.N) % 3 != 1)
            y = jnp.asarray(np.where((weights == 0)[:, None], np.nan, y), jnp.float32)
            if not self.H:
                source = jnp.asarray(np.where((weights == 0)[:, None], np.nan, source), self.dtype)
            weights = jnp.asarray(weights, jnp.float32)
        return head, self.chunk_size or self.N, source, y, weights


ROWS = [
    Case("plain", 3, 1, 300, {}),
    Case("one of each", 1, 1, 1, {"scale_link": links.Softplus(0.1)}),
    Case("one component", 1, 3, 37, {}),
    Case("floored", 17, 5, 13, {"scale_link": "damped_exp", "min_weight": 0.01}, weighted=True),
    Case("isotropic", 5, 5, 37, {"covariance": "isotropic", "scale_link": "exp"}, chunk_size=16),
    Case("isotropic-line", 5, 1, 37, {"covariance": "isotropic"}),
    Case(
        "isotropic-tied",
        32,
        2,
        37,
        {"covariance": "isotropic", "tied": True, "scale_link": links.Bounded(0.1, 3.0)},
        weighted=True,
    ),
    Case("tied-line", 6, 1, 200, {"tied": True}),
    Case("tied-bfloat16", 5, 5, 37, {"tied": True, "scale_link": "sigmoid"}, jnp.bfloat16),
    Case("many", 70, 30, 3, {}),
    Case("full", 3, 3, 4, {"covariance": "full", "min_weight": 0.02}, weighted=True),
]
FULL = [
    Case("full-line", 3, 1, 37, {"covariance": "full"}),
    Case("full-plane", 5, 2, 70, {"covariance": "full", "scale_link": "exp"}, chunk_size=16),
    Case("full-tied", 3, 5, 13, {"covariance": "full", "tied": True}, weighted=True),
    Case("full-bfloat16", 2, 6, 9, {"covariance": "full"}, jnp.bfloat16, weighted=True),
    Case("full-large", 8, 32, 3, {"covariance": "full"}),
    Case("full-one", 1, 3, 5, {"covariance": "full", "scale_link": "damped_exp"}),
    Case("full-layer", 3, 2, 37, {"covariance": "full"}, jnp.bfloat16, H=16, chunk_size=16),
]
LAYERS = [
    Case("plain", 3, 1, 37, {"min_weight": 0.05}, H=7, chunk_size=16),
    Case("isotropic-tied", 17, 3, 70, {"covariance": "isotropic", "tied": True}, H=20),
    Case("bfloat16", 3, 2, 37, {"scale_link": "exp"}, jnp.bfloat16, H=16, weighted=True),
]
by_name = {"ids": lambda case: case.name}


@pytest.mark.parametrize("case", ROWS + LAYERS, **by_name)
def test_value_and_gradients(case):
    compare(*case.build())


@pytest.mark.nightly
@pytest.mark.parametrize("case", FULL, **by_name)
def test_value_and_gradients_of_full_covariances(case):
    compare(*case.build())


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 8))]
)
def test_value_and_gradients_of_random_shapes(seed):
    rng = np.random.default_rng(seed)
    K, D, N = int(rng.integers(1, 40)), int(rng.integers(1, 9)), int(rng.integers(1, 200))
    options = {
        "covariance": rng.choice(["diagonal", "isotropic"]).item(),
        "tied": bool(rng.integers(2)),
        "min_weight": float(rng.choice([0.0, 0.5 / K])),
    }
    compare(*Case("random", K, D, N, options, weighted=bool(rng.integers(2))).build())


@pytest.mark.parametrize(
    "case",
    [*ROWS[:5], *(pytest.param(case, marks=pytest.mark.nightly) for case in (ROWS[-1], *FULL[:3]))],
    **by_name,
)
def test_value_alone_is_the_kernel_s_where_rows_are_many(case, monkeypatch):
    monkeypatch.setattr(triton, "FEWEST_ENTRIES", 0)
    head, _, raw, y, weights = case.build()
    kept = None if weights.shape[0] == 1 else weights != 0

    bias = jnp.asarray(0.2 * np.cos(np.arange(raw.shape[1])), raw.dtype)
    counted = np.asarray(weights if kept is None else kept)

    def found(raw, y, bias):
        return triton.value(head, raw, y, kept, bias)

    def plain(raw, y, bias):
        return -head.log_prob(raw + np.where(counted[:, None], 1.0, 0.0) * bias, y)

    @partial(jax.jit, static_argnums=0)
    def along(function, raw, y, bias):
        return jax.jvp(function, (raw, y, bias), (raw, jnp.ones_like(y), bias))

    nll, tangent = along(found, raw, y, bias)
    raw, y, bias = wide((raw, y, bias))
    expected, wanted = along(plain, *(np.where(counted[:, None], x, 0) for x in (raw, y)), bias)
    close(nll, expected, 1e-5)
    close(np.where(counted, tangent, 0), np.where(counted, wanted, 0), 1e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
class TestOnTheDevice:
    """The cases above run compiled there; these are of the sizes that the block sizes are for."""

    @pytest.mark.parametrize(("K", "D"), [(32, 1), (16, 16), (64, 32), (5, 3)])
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_many_rows(self, K, D, dtype):
        compare(*Case("large", K, D, 20011, {}, dtype).build())

    def test_two_runs_give_the_same_bits(self):
        arguments = Case("large", 16, 16, 20011, {}).build()
        first, second = kernel(*arguments), kernel(*arguments)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# ---------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("min_weight", [0.0, 0.1])
def test_edges(min_weight, monkeypatch):
    head = NormalHead(3, 1, scale_link="exp", min_scale=0.0, min_weight=min_weight)
    raw = np.zeros((6, 9), np.float32)
    raw[:, 3:6] = [0.0, 1.0, 2.0]
    y = np.zeros((6, 1), np.float32)
    raw[1, 0] = -np.inf  # a component without weight
    y[2] = 1e4  # densities underflow, their logarithms do not
    y[3] = 1e30  # even those do
    raw[4, :3] = -np.inf  # no weight at all
    raw[5, 1] = np.nan
    monkeypatch.setattr(triton, "ENTRIES", 16)  # blocks of four rows
    run = jax.jit(partial(triton.gradient, head, dtype=jnp.float32))
    found = run(jnp.asarray(raw), jnp.asarray(y), jnp.ones(6, jnp.float32))
    nll, gradient = np.asarray(found.nll), np.asarray(found.raw[0])
    finite = slice(0, 3)
    rows = np.ones(3)
    expected, (wanted, _, rows_nll) = reference(head, *wide((raw[finite], y[finite], rows)))
    close(nll[finite].sum(), expected, 1e-5)
    for i in range(3):  # each in units of its own largest entry
        close(nll[i], rows_nll[i], 1e-5)
        close(gradient[i], wanted[i], 1e-5)
    assert nll[3] == np.inf
    assert np.all(gradient[3] == 0)
    if min_weight == 0.0:
        assert nll[4] == np.inf
        assert np.all(gradient[4] == 0)
    else:  # the floor alone: equal weights
        close(nll[4], nll[0], 1e-6)
        close(gradient[4, 3:], gradient[0, 3:], 1e-6)
        assert np.all(gradient[4, :3] == 0)
    assert np.isnan(nll[5])


@pytest.mark.nightly
def test_edges_of_full_covariances(monkeypatch):
    head = NormalHead(3, 3, covariance="full", scale_link="exp", min_scale=0.0)
    monkeypatch.setattr(triton, "FACTOR_ENTRIES", 128)  # blocks of two rows
    raw, y = np.full((7, head.num_outputs), 0.5, np.float32), np.zeros((7, 3), np.float32)
    raw[1, 0] = -np.inf  # a component without weight
    raw[2, 3:6], y[3] = 1e30, 1e30  # one component out of reach, and all
    raw[4, :3] = -np.inf  # no weight at all
    raw[5, -1] = np.nan
    raw[6, 12:15] = -40.0  # a narrow component
    arguments = jnp.asarray(raw), jnp.asarray(y), jnp.ones(7, jnp.float32)
    options = {"dtype": jnp.float32, "with_y": True}
    found = jax.jit(partial(triton.gradient, head, **options))(*arguments)
    plain = jax.jit(partial(rows.gradient, head, **options))(*arguments)
    np.testing.assert_allclose(found.nll, plain.nll, rtol=1e-5)
    assert np.isfinite(found.nll[:3]).all()
    assert np.all(found.nll[3:5] == np.inf)
    assert np.isnan(found.nll[5])
    whole = np.concatenate(plain.raw, axis=1)
    for i in (0, 1, 2, 3, 4, 6):  # each in units of its own largest entry
        close(found.raw[0][i], whole[i], 1e-5, str(i))
        close(found.y[0][i], plain.y[0][i], 1e-5, str(i))


def test_nothing_is_zero():
    head, batch = NormalHead(3), Batch(jnp.zeros((0, 1)), jnp.ones(1, jnp.float32))
    raw = jnp.zeros((0, 9), jnp.float32)
    assert chunked.weighted_nll(head, Blocks(1, 1, KERNEL), raw, batch) == 0
    assert chunked.rows_nll(head, Blocks(1, 1, KERNEL), raw, batch).shape == (0,)
    assert triton.gradient(head, raw, *batch[:2], dtype=raw.dtype).raw[0].shape == (0, 9)


# --------------------------------------------------------------------------------------- public


@pytest.fixture
def pretend(monkeypatch):
    """A GPU that the dispatcher believes in, while the kernels are interpreted."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(triton, "interpreted", lambda: True)


# Not the jitted functions: what they trace here must not be found by another test.
nll, linear_nll = jaxmdn.nll.__wrapped__, jaxmdn.linear_nll.__wrapped__
N, HEAD = 6, NormalHead(3, 2)
RNG = np.random.default_rng(0)
RAW = jnp.asarray(RNG.normal(size=(N, HEAD.num_outputs)), jnp.float32)
Y = jnp.asarray(RNG.normal(size=(N, 2)), jnp.float32)
LAYER = Layer(
    *(jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((N, 4), (4, 15), (15,))),
)
WEIGHTS = jnp.asarray([1.0, 2.0, 0.0, 0.5, 1.0, 3.0], jnp.float32)
MASK = jnp.asarray([True, False, True, True, True, True])
REDUCTIONS = pytest.mark.parametrize(
    ("reduction", "options"),
    [("mean", {}), ("none", {"weights": WEIGHTS, "mask": MASK}), ("sum", {"mask": MASK})],
    ids=["mean", "none", "sum"],
)


def equal_trees(actual, expected, tolerance=1e-5):
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for i, (a, b) in enumerate(pairs):
        assert a.shape == b.shape
        close(a, b, tolerance, str(i))


@pytest.mark.version
@REDUCTIONS
def test_nll(pretend, reduction, options):
    def loss(implementation, raw, y):
        y = y.reshape(2, 3, 2)  # any leading axes
        more = {name: value.reshape(2, 3) for name, value in options.items()}
        value = nll(
            HEAD,
            raw.reshape(2, 3, -1),
            y,
            reduction=reduction,
            implementation=implementation,
            **more,
        )
        scale = jnp.arange(1, value.size + 1, dtype=value.dtype).reshape(value.shape)
        return jnp.sum(value * scale), value

    def run(implementation, *arguments):
        loss_ = partial(loss, implementation)
        return jax.jit(jax.value_and_grad(loss_, argnums=(0, 1), has_aux=True))(*arguments)

    equal_trees(run(KERNEL, RAW, Y), run("xla", *wide((RAW, Y))))


@REDUCTIONS
def test_linear_nll(pretend, reduction, options):
    def loss(implementation, layer, y):
        more = options | {"implementation": implementation, "precision": "highest"}
        value = linear_nll(HEAD, *layer, y, reduction=reduction, **more)
        return jnp.sum(value * jnp.arange(1, value.size + 1, dtype=value.dtype))

    actual = jax.jit(jax.value_and_grad(partial(loss, KERNEL), argnums=(0, 1)))(LAYER, Y)
    expected = jax.jit(jax.value_and_grad(partial(loss, "xla"), argnums=(0, 1)))(*wide((LAYER, Y)))
    equal_trees(actual, expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives(pretend, reduction):
    @partial(jax.jit, static_argnums=0)
    def product(implementation, raw, y):
        def loss(raw, y):
            options = {"weights": WEIGHTS.astype(raw.dtype), "implementation": implementation}
            return jnp.sum(nll(HEAD, raw, y, reduction=reduction, **options) ** 2)

        gradient = jax.grad(loss, argnums=(0, 1))
        return jax.jvp(gradient, (raw, y), (jnp.ones_like(raw), y))[1]

    equal_trees(product(KERNEL, RAW, Y), product("xla", *wide((RAW, Y))))


def test_members_by_vmap(pretend):
    @partial(jax.jit, static_argnums=0)
    def losses(implementation, raw, y):
        loss = partial(nll, HEAD, implementation=implementation)
        return jax.vmap(jax.value_and_grad(loss))(raw, y)

    raw, y = np.asarray(RAW), np.asarray(Y)
    raw, y = jnp.asarray([raw, 2 * raw, -raw]), jnp.asarray([y, y + 1, 3 * y])
    equal_trees(losses(KERNEL, raw, y), losses("xla", *wide((raw, y))))


def test_what_cannot_serve_says_so(pretend, user_errors):
    run = partial(nll, implementation=KERNEL)
    with pytest.raises(NotImplementedError, match=r"nll: .* computes in float32, got float64; le"):
        run(HEAD, RAW.astype(jnp.float64), Y)
    for head, message in (
        (NormalHead(3, 2, covariance="low_rank"), r"serves NormalHead without low .*'low_rank'"),
        (NormalHead(65, 64), r"at most 4096 locations \(K x D\), got .*=65, event_dim=64"),
        (NormalHead(5, 33, covariance="full"), r"at most 16384 entries .*=5, event_dim=33"),
    ):
        with pytest.raises(NotImplementedError, match=message):
            dispatch.choose("nll", KERNEL, head)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="serves there")
def test_without_a_gpu_it_raises_and_none_never_takes_it(user_errors):
    with pytest.raises(NotImplementedError, match=r"nll: .* needs a GPU, but the default backend"):
        jaxmdn.nll(HEAD, RAW, Y, implementation=KERNEL)
    for linear_ in (False, True):
        assert dispatch.choose("nll", None, HEAD, linear=linear_) != KERNEL


def test_default_on_a_gpu(pretend):
    full = NormalHead(3, 2, covariance="full")
    derived = type("Derived", (NormalHead,), {})(3, 2)  # may compute something else
    for head, raw, layer in (
        (HEAD, KERNEL, KERNEL),
        (full, "xla_chunked", "xla_chunked"),
        (NormalHead(128, 64), "xla", "xla_chunked"),
        (derived, "xla", "xla_chunked"),
        (jaxmdn.CategoricalHead(3), "xla", "xla_chunked"),
    ):
        assert dispatch.choose("nll", None, head) == raw
        assert dispatch.choose("nll", None, head, linear=True) == layer
    assert dispatch.choose("nll", None, HEAD, dtype=jnp.float64) == "xla"
    # One block as far as memory allows: a loop costs a launch for every turn.
    assert chunked.choose_blocks(HEAD, 10**6, None, KERNEL) == (10**6, 10**6, KERNEL)
    assert chunked.choose_blocks(HEAD, 10**8, None, KERNEL).gradient == 10**8
    assert chunked.choose_blocks(HEAD, 10**8, None).gradient == 2**28 // 15


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="is used there")
def test_it_is_loaded_on_first_use():
    code = (
        "import sys, jax.numpy as jnp, jaxmdn\n"
        "jaxmdn.nll(jaxmdn.NormalHead(2), jnp.zeros((3, 6)), jnp.zeros((3, 1)))\n"
        "late = ('jax.experimental.pallas', 'jax._src.pallas', 'jaxmdn.losses.kernels.triton')\n"
        "print([name for name in sys.modules if name.startswith(late)])"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


# -------------------------------------------------------------------------------------- lowering

CUDA = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
CALL = "__gpu$xla.gpu.triton"


def lowered(function, *arguments):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=CUDA)):
        return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


LINKS = {
    "exp": {},
    "softplus": {},
    "damped_exp": {"tied": True},
    "sigmoid": {"covariance": "isotropic"},
    "tanh": {"min_scale": 1.5, "covariance": "isotropic", "tied": True},
    "bounded": {"scale_link": links.Bounded(0.1, 3.0), "min_weight": 0.01},
}


@pytest.mark.version
@pytest.mark.parametrize("link", LINKS)
def test_nll_lowers_for_cuda(monkeypatch, link):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(triton, "FEWEST_ENTRIES", 0)
    head = NormalHead(5, 3, **({"scale_link": link} | LINKS[link]))
    raw = jnp.zeros((130, head.num_outputs), jnp.bfloat16 if link == "exp" else jnp.float32)
    y, options = jnp.zeros((130, 3), jnp.float32), {}
    if link in ("exp", "tanh"):
        options["mask"] = jnp.ones(130, bool)
    text = lowered(jax.value_and_grad(lambda raw, y: nll(head, raw, y, **options)), raw, y)
    assert text.count(CALL) == 1  # value and gradient at once
    value = lowered(lambda raw, y: nll(head, raw, y, **options), raw, y)
    assert value.count(CALL) == 1


@pytest.mark.version
@pytest.mark.parametrize(
    ("K", "D", "options"), [(8, 32, {}), (3, 5, {"tied": True, "min_weight": 0.01})]
)
def test_full_covariance_lowers_for_cuda(monkeypatch, K, D, options):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(triton, "FEWEST_ENTRIES", 0)
    head = NormalHead(K, D, covariance="full", **options)
    raw, y = jnp.zeros((130, head.num_outputs), jnp.bfloat16), jnp.zeros((130, D), jnp.float32)
    mask = jnp.ones(130, bool)

    def loss(raw, y, implementation=KERNEL):
        return nll(head, raw, y, mask=mask, implementation=implementation)

    assert lowered(jax.value_and_grad(loss, argnums=(0, 1)), raw, y).count(CALL) == 1
    assert lowered(loss, raw, y).count(CALL) == 1
    assert CALL not in lowered(partial(loss, implementation=None), raw, y)  # not measured yet


@pytest.mark.version
@pytest.mark.parametrize(
    ("K", "D", "H", "dtype"), [(5, 3, 100, "float32"), (32, 1, 256, "bfloat16")]
)
def test_linear_nll_lowers_for_cuda(monkeypatch, K, D, H, dtype):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    head = NormalHead(K, D, covariance="isotropic")
    P = head.num_outputs
    layer = Layer(*(jnp.zeros(shape, dtype) for shape in ((1000, H), (H, P), (P,))))
    y = jnp.zeros((1000, D), jnp.float32)

    def loss(layer, y):
        return linear_nll(head, *layer, y)

    text = lowered(jax.value_and_grad(loss, argnums=(0, 1)), layer, y)
    assert text.count(CALL) == 1
    # Raw outputs go from a product to the kernel, their gradient from it to two products and the
    # bias's sum: nothing converts, turns or silences either, and no product is rounded afterwards.
    passes = [line for line in text.splitlines() if f"tensor<1000x{P}x" in line]
    names = sorted(name for line in passes for name in re.findall(r"= (stablehlo\.\w+)", line))
    converted = ["stablehlo.convert"] * (dtype == "bfloat16")  # as it is summed, in one loop
    products = ["stablehlo.dot_general"] * 3
    assert names == [*converted, "stablehlo.custom_call", *products, "stablehlo.reduce"]
    (back,) = re.findall(rf"dot_general.*-> tensor<1000x{H}x(\w+)>", text)
    assert back == {"float32": "f32", "bfloat16": "bf16"}[dtype]
