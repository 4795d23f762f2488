"""``linear_nll``: what it stores, what it leaves out, and every error it can raise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from five import BIAS, HEAD, HIDDEN, KERNEL, LAYER, WEIGHTS, N, Y, from_hidden
from sweep import FUSED, PLAIN, H, close, plain_rows

import jaxmdn
from jaxmdn import NormalHead


@pytest.mark.parametrize(("batch", "reduction"), [((5,), "mean"), ((0,), "mean"), ((2, 0), "none")])
def test_no_rows_that_count(batch, reduction):
    head = NormalHead(3, 2)

    @partial(jax.value_and_grad, argnums=(0, 1, 2))
    def loss(hidden, kernel, bias, y, mask):
        options = {"mask": mask, "chunk_size": 2, "reduction": reduction, "implementation": FUSED}
        return jnp.sum(jaxmdn.linear_nll(head, hidden, kernel, bias, y, **options))

    hidden, y = np.full((*batch, H), np.nan), np.full((*batch, 2), np.nan)
    layer = (hidden, np.ones((H, head.num_outputs)), np.ones(head.num_outputs))
    value, gradients = jax.jit(loss)(*layer, y, np.zeros(batch, bool))
    assert value == 0
    for gradient, parameter in zip(gradients, layer, strict=True):
        assert gradient.shape == parameter.shape
        assert not np.any(np.asarray(gradient))


def test_gradient_of_wide_features_under_a_narrow_kernel():
    # Only what is stored in bfloat16 may be rounded to it: the gradient of hidden is not.
    head, rng = NormalHead(3, 2), np.random.default_rng(0)
    hidden, y = (jnp.asarray(rng.normal(size=(5, n)), jnp.float32) for n in (H, 2))
    kernel = jnp.asarray(rng.normal(size=(H, head.num_outputs)), jnp.bfloat16)
    bias = jnp.zeros(head.num_outputs, jnp.bfloat16)

    def loss(hidden, kernel):
        options = {"implementation": FUSED, "chunk_size": 2, "reduction": "sum"}
        return jaxmdn.linear_nll(head, hidden, kernel, bias, y, **options)

    hidden_gradient, kernel_gradient = jax.jit(jax.grad(loss, (0, 1)))(hidden, kernel)
    wide_hidden, wide_kernel = (np.asarray(x, np.float64) for x in (hidden, kernel))
    raw = wide_hidden @ wide_kernel
    slope = np.asarray(plain_rows(head, raw, np.asarray(y, np.float64))[1])
    close(hidden_gradient, slope @ wide_kernel.T, jnp.float32)
    close(kernel_gradient, wide_hidden.T @ slope, jnp.bfloat16)


def test_linear_with_weights_of_zero():
    # The bias of a component that is switched off: its row of the kernel has no gradient.
    head = NormalHead(3, 2)
    rng = np.random.default_rng(0)
    hidden, y = jnp.asarray(rng.normal(size=(5, H))), jnp.asarray(rng.normal(size=(5, 2)))
    kernel = jnp.asarray(rng.normal(size=(H, head.num_outputs)))
    bias = jnp.asarray(np.where(np.arange(head.num_outputs) == 1, -np.inf, 0.0))

    @partial(jax.jit, static_argnums=0)
    def both(name, *layer):
        options = {"implementation": name, "chunk_size": 2}
        return jax.value_and_grad(
            lambda *layer: jaxmdn.linear_nll(head, *layer, y, **options), (0, 1, 2)
        )(*layer)

    actual, expected = (both(name, hidden, kernel, bias) for name in (FUSED, PLAIN))
    jax.tree.map(partial(close, dtype=jnp.float64), actual, expected)
    assert np.all(np.isfinite(actual[1][1]))
    assert not np.any(np.asarray(actual[1][1])[:, 1])


def shapes(jaxpr):
    """Shapes of everything that a jaxpr computes, in its loops as well."""
    for equation in jaxpr.eqns:
        yield from (tuple(variable.aval.shape) for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_has_equations):
            if _has_equations(inner):
                yield from shapes(getattr(inner, "jaxpr", inner))


def _has_equations(value):
    return hasattr(value, "eqns")


def test_linear_never_makes_what_was_not_asked_for():
    P = HEAD.num_outputs

    def computed(wrt, reduction="mean"):
        def loss(*x):
            return jnp.sum(from_hidden(*x, reduction=reduction))

        return set(shapes(jax.make_jaxpr(jax.grad(loss, wrt))(*LAYER).jaxpr))

    every = computed((0, 1, 2))
    assert (N, P) not in every | computed((0, 1, 2), "none")  # raw outputs, a block at a time
    assert {(2, P), (N, H), (H, P)} <= every  # the helper sees into loops
    assert (N, H) not in computed((1, 2))
    assert (H, P) not in computed(0) - {KERNEL.T.shape}
    assert (N, 2) not in computed((0, 1, 2))  # the gradient of y


def temporary_bytes(rows, **options):
    head, width = NormalHead(16, 16), 256
    P = head.num_outputs

    def loss(hidden, kernel, bias, y):
        return jnp.sum(jaxmdn.linear_nll(head, hidden, kernel, bias, y, **options))

    shapes = ((rows, width), (width, P), (P,), (rows, 16))
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    lowered = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*arguments)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_temporaries_of_linear_nll_do_not_grow_with_the_rows():
    # The gradient of hidden is an output. Left are a block's own arrays (some 2.4 MB) and one sum
    # per block; the plain composition keeps raw outputs and more for every row (88 MB).
    few, many = (temporary_bytes(rows) for rows in (16384, 65536))
    assert many - few < 65536
    assert few <= 0.05 * temporary_bytes(16384, implementation=PLAIN)


def test_temporaries_of_linear_nll_per_row():
    # Each row's cotangent may differ, so that what the blocks are computed from is kept for the
    # backward pass: hidden [256], the target [16], two numbers; and as above.
    assert temporary_bytes(16384, reduction="none") <= 4 * 16384 * (256 + 16 + 2) + 4e6


LINEAR_ERRORS = {
    "kernel": (
        {"kernel": KERNEL[:2]},
        ValueError,
        r"linear_nll: kernel must have shape \[3, 15\] for hidden features \[5, 3\] and "
        r"NormalHead\(num_components=3.*\), got \[2, 15\]\.",
    ),
    "bias": (
        {"bias": BIAS[1:]},
        ValueError,
        r"linear_nll: bias must have shape \[15\] for hidden .*\[5, 3\] and .*, got \[14\]\.",
    ),
    "hidden dtype": (
        {"hidden": jnp.ones((N, H), int)},
        TypeError,
        "linear_nll: hidden must have a real floating dtype, got int64; convert it with "
        r"hidden.astype\(jax.numpy.float32\)",
    ),
    "implementation": (
        {"implementation": "cuda"},
        ValueError,
        "linear_nll: implementation must be one of 'xla', 'xla_chunked'.*; got 'cuda'",
    ),
    "triton": (
        {"implementation": "pallas_triton"},
        (NotImplementedError, ValueError),
        "linear_nll: implementation.*pallas_triton",
    ),
    "chunk_size": (
        {"chunk_size": 0},
        ValueError,
        "linear_nll: chunk_size must be at least 1, got 0",
    ),
    "chunk_size type": (
        {"chunk_size": 2.0},
        TypeError,
        r"linear_nll: chunk_size must be a Python int, got float \(2.0\)",
    ),
    "reduction": (
        {"reduction": "max"},
        ValueError,
        "linear_nll: reduction must be one of 'mean', 'sum', 'none'; got 'max'",
    ),
    "weights": (
        {"weights": WEIGHTS[:4]},
        ValueError,
        r"linear_nll: weights must have one entry per row, shape \[5\], got \[4\]",
    ),
    "mask": ({"mask": WEIGHTS}, TypeError, "linear_nll: mask must be boolean.*got float64"),
    "y rows": ({"y": Y[:4]}, ValueError, r"axes must broadcast.*\[5\].*\[4\]"),
    "y size": ({"y": Y[:, :1]}, ValueError, r"y of shape \[\.\.\., 2\].*got \[5, 1\]"),
}


@pytest.mark.parametrize("case", LINEAR_ERRORS)
def test_linear_nll_errors(user_errors, case):
    changes, kind, message = LINEAR_ERRORS[case]
    arguments = {"hidden": HIDDEN, "kernel": KERNEL, "bias": BIAS, "y": Y} | changes
    with pytest.raises(kind, match=message) as caught:
        jaxmdn.linear_nll(HEAD, **arguments)
    assert "\n" not in str(caught.value)
