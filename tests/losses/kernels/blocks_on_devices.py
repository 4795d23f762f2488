"""Fused likelihoods of rows that lie on eight devices, against the plain composition on one.

``python blocks_on_devices.py short|long``: JAX must know the number of devices before it starts.
"""

import functools
import itertools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmdn
from jaxmdn.losses.kernels import dispatch

N, H, CHUNK = 64, 3, 4
MESHES = {
    "rows": ((8,), ("data",), P("data")),
    "rows and copies": ((4, 2), ("data", "model"), P("data")),
    "two axes": ((4, 2), ("data", "model"), P(("data", "model"))),
}
KINDS = (AxisType.Explicit, AxisType.Auto)
CHOSEN = []


def data(head, dtype, count=N):
    rng = np.random.default_rng(0)
    shapes = [(count, head.num_outputs), (count, H), (count, head.event_dim)]
    raw, hidden, y = (rng.normal(size=shape).astype(dtype) for shape in shapes)
    weights = rng.uniform(0.5, 2.0, size=count).astype(dtype)
    weights[3] = 0.0
    mask = rng.uniform(size=count) < 0.8
    raw[5], hidden[5], mask[5] = np.nan, np.nan, False  # leaves no trace
    kernel = (0.3 * rng.normal(size=(H, head.num_outputs))).astype(dtype)
    return {"raw": raw, "hidden": hidden, "y": y, "weights": weights, "mask": mask}, kernel


def losses(head, reduction, options, rows, kernel):
    """Value and all gradients of both functions."""
    bias = jnp.zeros_like(kernel[0])
    kept = {"mask": rows["mask"], "reduction": reduction, **options}

    def total(value):
        return jnp.sum(value * jnp.arange(1.0, 1.0 + value.size, dtype=value.dtype))

    def nll(raw, y, weights):
        CHOSEN.append(dispatch.choose("nll", options.get("implementation"), head, raw))
        return total(jaxmdn.nll(head, raw, y, weights=weights, **kept))

    def linear(hidden, kernel, y):
        return total(jaxmdn.linear_nll(head, hidden, kernel, bias, y, **kept))

    return (
        jax.value_and_grad(nll, (0, 1, 2))(rows["raw"], rows["y"], rows["weights"]),
        jax.value_and_grad(linear, (0, 1, 2))(rows["hidden"], kernel, rows["y"]),
    )


def compare(found, expected, dtype=np.float64, usual=None):
    """Equal but for some roundings of the largest entry, or no worse than what is ``usual``."""
    trees = [jax.tree.leaves(tree) for tree in (found, expected, found if usual is None else usual)]
    for a, b, c in zip(*trees, strict=True):
        most = 100 * np.finfo(dtype).eps * np.max(np.abs(b))
        if usual is not None:
            most += 2 * np.max(np.abs(np.asarray(c, np.float64) - b))
        np.testing.assert_allclose(a, b, rtol=0, atol=most)


def moved(text):
    """What a compiled program gathers, and the bytes that it adds up between devices."""
    gathers = re.findall(r"(?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
    sums = re.findall(r"= (\(.*?\)|\S+) all-reduce(?:-start)?\(", text)
    sizes = [
        int(np.prod([int(n) for n in shape.split(",") if n])) * int(bits) // 8
        for kinds in sums
        for bits, shape in re.findall(r"f(\d+)\[([\d,]*)\]", kinds)
    ]
    return gathers, sum(sizes)


def check(covariance, layout, kind, dtype, reduction, how, count=N):
    """Spread rows give what rows on one device do; nothing as long as the rows is moved."""
    head = jaxmdn.NormalHead(4, 2, covariance=covariance)
    rows, kernel = data(head, dtype, count)
    shape, names, spec = MESHES[layout]
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))
    place = functools.partial(jax.device_put, device=NamedSharding(mesh, spec))
    every = jax.device_put(kernel, NamedSharding(mesh, P()))
    run = functools.partial(losses, head, reduction, {"chunk_size": CHUNK})
    plain = functools.partial(losses, head, reduction, {"implementation": "xla"})
    exact = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == dtype else x, (rows, kernel))
    expected = jax.jit(plain)(*exact)
    fused = functools.partial(losses, head, reduction, {"implementation": "xla_chunked"})
    usual = jax.jit(fused)(rows, kernel) if dtype == "float32" else None
    spread = jax.tree.map(place, rows)
    CHOSEN.clear()
    if how == "eager":  # the public functions are compiled, one at a time
        with jax.set_mesh(mesh):  # without it JAX takes no derivative over explicit axes
            found = run(spread, every)
    else:
        compiled = jax.jit(run).lower(spread, every).compile()
        found, text = compiled(spread, every), compiled.as_text()
        gathers, size = moved(text)
        assert not gathers, gathers
        parameters = (H + 1) * head.num_outputs
        assert 0 < size <= 2 * np.dtype(dtype).itemsize * (parameters + 16), size
        if reduction != "none":
            local = (
                count
                * len(jax.devices())
                // mesh.size
                // np.prod([mesh.shape[name] for name in jax.tree.leaves(tuple(spec))])
            )
            assert f"[{local},{head.num_outputs}]" in text, "the rows of one device"
            assert " while(" in text, "blocks"
    assert set(CHOSEN) == {"xla_chunked"}, CHOSEN
    compare(found, expected, dtype, usual)
    gradient = found[0][1][0]
    assert gradient.sharding.is_equivalent_to(spread["raw"].sharding, gradient.ndim)


def uneven():
    """61 rows on eight devices, which only the compiler can cut."""
    head = jaxmdn.NormalHead(4, 2)
    rows, kernel = data(head, "float64")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def cut(options, rows, kernel):
        rows = jax.tree.map(lambda leaf: leaf[:61], rows)
        rows = jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, P("data")))
        return losses(head, "mean", options, rows, kernel)

    first = jax.tree.map(lambda leaf: leaf[:61], rows)
    expected = jax.jit(functools.partial(losses, head, "mean", {"implementation": "xla"}))(
        first, kernel
    )
    for options in ({}, {"implementation": "xla_chunked", "chunk_size": CHUNK}):
        CHOSEN.clear()
        compare(jax.jit(functools.partial(cut, options))(rows, kernel), expected)
        assert set(CHOSEN) == {options.get("implementation", "xla")}


def transforms():
    """Second derivatives, ``vmap`` and forward mode of spread rows."""
    head = jaxmdn.NormalHead(2, 1)
    rows, _ = data(head, "float64")
    raw, y = np.nan_to_num(rows["raw"]), rows["y"]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put((raw, y), NamedSharding(mesh, P("data")))

    def ask(implementation, raw, y):
        def loss(raw):
            return jaxmdn.nll(head, raw, y, implementation=implementation)

        hvp = jax.jvp(jax.grad(loss), (raw,), (jnp.cos(raw),))[1]
        return (
            hvp,
            jax.vmap(jax.grad(loss))(jnp.stack([raw, 2 * raw])),
            jax.jvp(loss, (raw,), (jnp.sin(raw),)),
        )

    expected = jax.jit(functools.partial(ask, "xla"))(raw, y)
    compare(jax.jit(functools.partial(ask, "xla_chunked"))(*spread), expected)


def inside_shard_map():
    """Every device by blocks, as they are told."""
    head = jaxmdn.NormalHead(4, 2)
    rows, _ = data(head, "float64")
    raw, y = np.nan_to_num(rows["raw"]), rows["y"]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    CHOSEN.clear()

    def local(raw, y):
        CHOSEN.append(dispatch.choose("nll", None, head, raw))
        value = jax.value_and_grad(lambda raw: jaxmdn.nll(head, raw, y, reduction="sum"))(raw)
        return value[0][None], value[1]

    inside = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data")))
    found = inside(raw, y)
    assert CHOSEN == ["xla_chunked"]
    expected = jax.value_and_grad(
        lambda raw: jaxmdn.nll(head, raw, y, reduction="sum", implementation="xla")
    )(jnp.asarray(raw))
    compare((jnp.sum(found[0]), found[1]), expected)


def main(which):
    assert jax.device_count() == 8
    jax.config.update("jax_enable_x64", True)
    if which == "short":
        check("diagonal", "rows", AxisType.Explicit, "float64", "mean", "jit")
        check("full", "rows and copies", AxisType.Auto, "float64", "sum", "jit")
        inside_shard_map()
    else:
        cases = itertools.product(MESHES, KINDS, ("mean", "sum", "none"))
        for place, (layout, kind, reduction) in enumerate(cases):
            covariance = ("diagonal", "full", "low_rank")[(place + place // 3) % 3]
            single = place % 2 and covariance != "low_rank"
            dtype, how = "float32" if single else "float64", "jit" if place % 4 else "eager"
            check(covariance, layout, kind, dtype, reduction, how)
        uneven()
        transforms()
    print("agreed")


if __name__ == "__main__":
    main(*sys.argv[1:])
