"""The GPU kernels: their numbers in the interpreter, and their code for CUDA, without a GPU.

The reference is float64 autodiff of each row's plain likelihood (``implementation="xla"``), at the
numbers that the kernel's dtype holds.
"""

from __future__ import annotations

import dataclasses
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
from jaxmdn import NormalHead, links
from jaxmdn.kernels import dispatch, triton, triton_program
from jaxmdn.kernels.chunked import Batch
from jaxmdn.kernels.linear import Layer

# From JAX 0.12 on, lowering says that this backend will go.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")

# What the module promises, in units of an array's largest entry: float32 rounding of chains of some
# tens of operations; a gradient rounded to 8 bits, and for a layer two rounded factors.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def close(actual, expected, tolerance, name=""):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    atol = tolerance * max(np.max(np.abs(expected), initial=0.0), 1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=name)


def wide(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64), tree)


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

    return jax.value_and_grad(total, argnums=(0, 1, 2))(*wide((source, y, weights)))


@partial(jax.jit, static_argnums=0)
def kernel(config, source, y, weights):
    def total(source, y, weights):
        kept = weights != 0 if weights.shape[0] > 1 else None
        return triton.weighted_nll(config, source, Batch(y, weights, kept))

    return jax.value_and_grad(total, argnums=(0, 1, 2))(source, y, weights)


def compare(config, source, y, weights):
    dtype = jax.tree.leaves(source)[0].dtype
    value, gradients = kernel(config, source, y, weights)
    rows = jnp.broadcast_to(weights, y.shape[:1])
    expected, references = reference(config.head, source, y, rows)
    assert value.dtype == jnp.float32
    close(value, expected, 1e-5)
    assert [g.dtype for g in jax.tree.leaves(gradients)] == [
        x.dtype for x in jax.tree.leaves((source, y, weights))
    ]
    if weights.shape[0] == 1:
        references = (*references[:2], jnp.sum(references[2], keepdims=True))
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
    block_rows: int | None = None

    def build(self, interpret):
        """Config, source, targets and weights."""
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
            weights = jnp.asarray(weights, jnp.float32)
            y = jnp.where((weights == 0)[:, None], jnp.nan, y)
        return triton.Config(head, self.block_rows, None, "highest", interpret), source, y, weights


ROWS = [
    Case("plain", 3, 1, 37, {}, block_rows=16),
    Case("one of each", 1, 1, 1, {"scale_link": links.Softplus(0.1)}),
    Case(
        "floored",
        17,
        5,
        130,
        {"scale_link": "damped_exp", "min_weight": 0.01},
        weighted=True,
        block_rows=64,
    ),
    Case("isotropic", 5, 5, 37, {"covariance": "isotropic", "scale_link": "exp"}, block_rows=32),
    Case(
        "isotropic-tied",
        32,
        2,
        37,
        {"covariance": "isotropic", "tied": True, "scale_link": links.Bounded(0.1, 3.0)},
        weighted=True,
        block_rows=8,
    ),
    Case("tied-bfloat16", 5, 5, 37, {"tied": True, "scale_link": "sigmoid"}, jnp.bfloat16),
]
LAYERS = [
    Case("plain", 3, 1, 37, {"min_weight": 0.05}, H=7, block_rows=16),
    Case("isotropic-tied", 17, 3, 70, {"covariance": "isotropic", "tied": True}, H=20),
    Case("bfloat16", 3, 2, 37, {"scale_link": "exp"}, jnp.bfloat16, H=16, weighted=True),
]
by_name = {"ids": lambda case: case.name}


@pytest.mark.parametrize("case", ROWS, **by_name)
def test_raw_outputs_in_the_interpreter(case):
    compare(*case.build(interpret=True))


@pytest.mark.parametrize("case", LAYERS, **by_name)
def test_output_layer_in_the_interpreter(case, monkeypatch):
    # Two programs that take turns, and several tiles of hidden features, at a small size.
    monkeypatch.setattr(triton, "PROGRAMS", 2)
    monkeypatch.setattr(triton, "MAX_LINEAR_ROWS", 16)
    monkeypatch.setattr(triton_program, "TILE", 16)
    compare(*case.build(interpret=True))


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
class TestOnTheDevice:
    """The same cases, compiled; then at the sizes the block heuristics are for."""

    @pytest.mark.parametrize("case", ROWS + LAYERS, **by_name)
    def test_small(self, case):
        compare(*case.build(interpret=False))

    @pytest.mark.parametrize("H", [0, 128, 256])
    @pytest.mark.parametrize(("K", "D"), [(32, 1), (16, 16)])
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_large(self, K, D, H, dtype):
        compare(*Case("large", K, D, 20011, {}, dtype, H=H).build(interpret=False))

    def test_two_runs_give_the_same_bits(self):
        arguments = Case("large", 32, 1, 20011, {}, H=256).build(interpret=False)
        first, second = kernel(*arguments), kernel(*arguments)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# ---------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("min_weight", [0.0, 0.1])
def test_edges(min_weight):
    head = NormalHead(3, 1, scale_link="exp", min_scale=0.0, min_weight=min_weight)
    raw = np.zeros((6, 9), np.float32)
    raw[:, 3:6] = [0.0, 1.0, 2.0]
    y = np.zeros((6, 1), np.float32)
    raw[1, 0] = -np.inf  # a component without weight
    y[2] = 1e4  # densities underflow, their logarithms do not
    y[3] = 1e30  # even those do
    raw[4, :3] = -np.inf  # no weight at all
    raw[5, 1] = np.nan
    run = jax.jit(partial(triton.rows_gradient, triton.Config(head, 4, interpret=True)))
    batch = Batch(jnp.asarray(y), jnp.ones(6, jnp.float32))
    nll, gradient, _ = jax.tree.map(np.asarray, run(jnp.asarray(raw), batch))
    finite = slice(0, 3)
    rows = jnp.ones(3, jnp.float32)
    expected, (wanted, _, rows_nll) = reference(
        head, jnp.asarray(raw[finite]), jnp.asarray(y[finite]), rows
    )
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


def test_nothing_is_zero():
    head = NormalHead(3)
    config = triton.Config(head, interpret=True)
    batch = Batch(jnp.zeros((0, 1)), jnp.ones(1, jnp.float32))
    raw = jnp.zeros((0, 9), jnp.float32)
    assert triton.weighted_nll(config, raw, batch) == 0
    assert triton.rows_nll(config, raw, batch).shape == (0,)
    layer = Layer(jnp.zeros((0, 4), jnp.float32), jnp.ones((4, 9), jnp.float32), raw.sum(axis=0))
    assert triton.weighted_nll(config, layer, batch) == 0


# --------------------------------------------------------------------------------------- public


@pytest.fixture
def pretend(monkeypatch):
    """A GPU that the dispatcher believes in, while the kernels are interpreted."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(triton, "Config", partial(triton.Config, interpret=True))


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


@pytest.mark.parametrize(
    ("reduction", "options"),
    [("mean", {}), ("none", {"weights": WEIGHTS, "mask": MASK}), ("sum", {"mask": MASK})],
    ids=["mean", "none", "sum"],
)
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

    actual, expected = run("pallas_triton", RAW, Y), run("xla", *wide((RAW, Y)))
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for i, (a, b) in enumerate(pairs):
        assert a.shape == b.shape
        close(a, b, 1e-5, str(i))


def test_linear_nll(pretend):
    def loss(implementation, layer, y):
        return linear_nll(HEAD, *layer, y, weights=WEIGHTS, implementation=implementation)

    actual = jax.jit(jax.value_and_grad(partial(loss, "pallas_triton")))(LAYER, Y)
    expected = jax.jit(jax.value_and_grad(partial(loss, "xla")))(*wide((LAYER, Y)))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        close(a, b, 1e-5)


def test_what_cannot_serve_says_so(pretend, user_errors):
    run = partial(nll, implementation="pallas_triton")
    with pytest.raises(NotImplementedError, match="computes in float32, got float64; cast to"):
        run(HEAD, RAW.astype(jnp.float64), Y)
    full = NormalHead(3, 2, covariance="full")
    with pytest.raises(NotImplementedError, match=r"serves NormalHead.*, got .*covariance='full'"):
        run(full, jnp.zeros((N, full.num_outputs), jnp.float32), Y)
    linear = partial(linear_nll, HEAD, implementation="pallas_triton")
    with pytest.raises(NotImplementedError, match=r'linear_nll:.*must be "mean" or "sum", got "no'):
        linear(*LAYER, Y, reduction="none")
    hidden, weight = jnp.zeros((N, 257), jnp.float32), jnp.zeros((257, 15), jnp.float32)
    with pytest.raises(NotImplementedError, match="at most 256 hidden features, got 257"):
        linear(hidden, weight, LAYER.bias, Y)
    with pytest.raises(NotImplementedError, match='first derivatives only; use implementation="x'):
        jax.eval_shape(jax.grad(lambda raw: jnp.sum(jax.grad(lambda r: run(HEAD, r, Y))(raw))), RAW)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="serves there")
def test_without_a_gpu_it_raises_and_none_never_takes_it(user_errors):
    with pytest.raises(NotImplementedError, match=r"nll: .* needs a GPU, but the default backend"):
        jaxmdn.nll(HEAD, RAW, Y, implementation="pallas_triton")
    for linear in (False, True):
        assert dispatch.choose("nll", None, HEAD, linear=linear) != "pallas_triton"


def test_none_does_not_take_it_on_a_gpu_either(pretend):
    for linear in (False, True):
        assert dispatch.choose("nll", None, HEAD, linear=linear) != "pallas_triton"


def test_it_is_loaded_on_first_use():
    code = (
        "import sys, jax.numpy as jnp, jaxmdn\n"
        "jaxmdn.nll(jaxmdn.NormalHead(2), jnp.zeros((3, 6)), jnp.zeros((3, 1)))\n"
        "late = ('jax.experimental.pallas', 'jax._src.pallas', 'jaxmdn.kernels.triton')\n"
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


@pytest.mark.parametrize("link", LINKS)
def test_nll_lowers_for_cuda(monkeypatch, link):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    head = NormalHead(5, 3, **({"scale_link": link} | LINKS[link]))
    raw = jnp.zeros((130, head.num_outputs), jnp.bfloat16 if link == "exp" else jnp.float32)
    y, options = jnp.zeros((130, 3), jnp.float32), {"implementation": "pallas_triton"}
    if link in ("exp", "tanh"):
        options["mask"] = jnp.ones(130, bool)
    text = lowered(jax.value_and_grad(lambda raw, y: nll(head, raw, y, **options)), raw, y)
    assert text.count(CALL) == 1  # value and gradient at once
    value = lowered(lambda raw, y: nll(head, raw, y, **options), raw, y)
    assert value.count(CALL) == 1


@pytest.mark.parametrize("precision", [None, "highest"])
@pytest.mark.parametrize(
    ("K", "D", "H", "dtype"), [(5, 3, 100, "float32"), (32, 1, 256, "bfloat16")]
)
def test_linear_nll_lowers_for_cuda(monkeypatch, K, D, H, dtype, precision):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    head = NormalHead(K, D, covariance="isotropic")
    P = head.num_outputs
    layer = Layer(*(jnp.zeros(shape, dtype) for shape in ((1000, H), (H, P), (P,))))
    options = {"precision": precision, "implementation": "pallas_triton"}

    def loss(layer, y):
        return linear_nll(head, *layer, y, **options)

    y = jnp.zeros((1000, D), jnp.float32)
    assert lowered(jax.value_and_grad(loss, argnums=(0, 1)), layer, y).count(CALL) == 1
    assert lowered(loss, layer, y).count(CALL) == 1
