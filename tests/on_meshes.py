"""Asks every question on eight devices, and compares with one; a program of its own.

``python on_meshes.py heads mode...``: JAX must know the number of devices before it starts. A mode
that ends with ``types`` is traced alone: what JAX refuses on a mesh, it refuses while tracing.
"""

import functools
import sys

import jax
import numpy as np
import questions
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmdn
from jaxmdn import train

KINDS = {"explicit": AxisType.Explicit, "automatic": AxisType.Auto, "manual": AxisType.Auto}


def close(value, expected):
    value, expected = (np.asarray(x, np.float64) for x in (value, expected))
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-11)


def ask(name, head, mode, shapes):
    """One question on one mesh."""
    kind, _, types = mode.partition(" ")
    run = jax.eval_shape if types else lambda function, *x: jax.jit(function)(*x)
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(KINDS[kind],))
    raw, y = questions.rows(head)
    question = functools.partial(questions.QUESTIONS[name], head)
    with jax.set_mesh(mesh):
        by_rows = NamedSharding(mesh, P("rows"))
        spread = jax.tree.map(lambda x: jax.device_put(x, by_rows), (raw, y))
        if kind == "manual":
            alone = functools.partial(jax.tree.map, lambda x: jax.numpy.asarray(x)[None])
            local = jax.shard_map(
                lambda *x: alone(question(*x)), mesh=mesh, in_specs=P("rows"), out_specs=P("rows")
            )
            run(local, *spread)
            return
        answer = run(question, *spread)
    assert jax.tree.map(np.shape, answer) == jax.tree.map(np.shape, shapes)
    if not types:
        jax.tree.map(close, answer, jax.jit(question)(raw, y))
        leaves = zip(jax.tree.leaves(answer), jax.tree.leaves(shapes), strict=True)
        if kind == "explicit" and name in ("nll of rows", "quantile", "cdf", "crps"):
            assert all(leaf.sharding.is_equivalent_to(by_rows, leaf.ndim) for leaf, _ in leaves)


def train_on(kind, context):
    """Training with rows that are spread is training with rows that are not."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 2)).astype(np.float32)
    y = (x[:, :1] + rng.normal(size=(64, 1))).astype(np.float32)

    def nll(x, y):
        model = jaxmdn.nn.MDN(2, jaxmdn.NormalHead(2, 1), hidden_features=(4,), rngs=nnx.Rngs(0))
        result = train.fit(model, x, y, num_epochs=2, batch_size=16, progress=False)
        assert result.log_prob(x, y).shape == (64,)
        return result.history["valid_nll"]

    mesh = jax.make_mesh((8,), ("rows",), axis_types=(KINDS[kind],))
    spread = [jax.device_put(v, NamedSharding(mesh, P("rows"))) for v in (x, y)]
    expected = nll(x, y)
    if context:
        with jax.set_mesh(mesh):
            np.testing.assert_allclose(nll(*spread), expected, rtol=1e-5)
    else:
        np.testing.assert_allclose(nll(*spread), expected, rtol=1e-5)


def main(names, chosen, modes):
    assert jax.device_count() == 8
    heads, failures, count = questions.heads(), [], 0
    # A context would not reach what XLA asks of JAX while it compiles, in its own threads.
    jax.config.update("jax_enable_x64", True)
    for head in names or heads:
        shapes = questions.answered(heads[head], *questions.rows(heads[head]))
        for name in shapes.keys() & set(chosen) if chosen else shapes:
            for mode in modes:
                count += 1
                try:
                    ask(name, heads[head], mode, shapes[name])
                except Exception as error:
                    failures.append(f"{head}, {name}, {mode}: {str(error)[:300]}")
    jax.config.update("jax_enable_x64", False)
    if not chosen:
        with jax.numpy_dtype_promotion("standard"):
            for kind in ("explicit", "automatic"):
                train_on(kind, context=True)
                train_on(kind, context=False)
    print("\n".join(failures), f"asked {count}, failed {len(failures)}")


if __name__ == "__main__":
    main(*(argument.split(",") if argument else [] for argument in sys.argv[1:]))
