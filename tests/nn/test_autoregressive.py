"""Autoregressive models: masks, the density, missing outputs, training on a known truth."""

import json

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import integrate, special, stats

import jaxmdn
from jaxmdn import CategoricalHead, NormalHead, train
from jaxmdn.heads import FactorizedHead, Family, graph
from jaxmdn.nn import AutoregressiveMDN
from jaxmdn.nn.masked import distinct_sets
from jaxmdn.nn.outputs import AutoregressiveHead
from jaxmdn.train import checkpoint

F = 2
HEAD = NormalHead(3)


def build(dag, heads=HEAD, *, hidden=(12, 10), seed=0, kernel_scale=1.0, activation="tanh"):
    return AutoregressiveMDN(
        F,
        heads,
        graph=dag,
        hidden_features=hidden,
        activation=activation,
        kernel_scale=kernel_scale,
        rngs=nnx.Rngs(seed),
    )


def random_dag(rng, D):
    rank, edge = rng.permutation(D), rng.random((D, D)) < rng.uniform(0.2, 1.0)
    return tuple(tuple(p for p in range(D) if rank[p] < rank[d] and edge[d, p]) for d in range(D))


def draw(D, rows=6, seed=1, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, F)).astype(dtype), rng.normal(size=(rows, D)).astype(dtype)


def wide(density):
    """The same density with parameters in float64."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), density.params)
    return type(density)(network=density.network, params=params, x=jnp.asarray(density.x))


# NumPy's own reading of the documentation: who sees what, and what comes of the raw outputs.


def numpy_raw(model, x, y, d, params=None):
    """Raw outputs of output ``d``, by a network of only the units that it may see."""
    dag, sets = model.graph, distinct_sets(model.graph)
    seen = [set()] * F
    inputs = [x]
    for e, head in enumerate(model.head.heads):
        if isinstance(head, CategoricalHead):
            inputs.append(np.eye(head.num_classes)[y[:, e].astype(int)])
            seen += [{e}] * head.num_classes
        else:
            inputs.append(y[:, e : e + 1])
            seen += [{e}]
    inputs = first = np.concatenate(inputs, axis=-1)
    before = seen
    layers = params or [
        (np.asarray(k, np.float64), np.asarray(b, np.float64)) for k, b in model.params
    ]
    for kernel, bias in layers[:-1]:
        units = [set(sets[i % len(sets)]) for i in range(len(bias))]
        mask = np.array([[a <= b for b in units] for a in before])
        inputs, before = np.tanh(inputs @ (kernel * mask) + bias), units
    kernel, bias = layers[-1]
    columns = model.head.slices[d]
    may = np.array([sees <= set(dag[d]) for sees in [*before, *(seen if layers[:-1] else [])]])
    final = np.concatenate([inputs, first], axis=-1) if layers[:-1] else inputs
    return (final * may) @ kernel[:, columns] + bias[columns]


def numpy_conditional(model, x, y, d, params=None):
    """``(log p(y_d | ...), P(Y_d <= y_d | ...))`` by NumPy; of complex numbers, for derivatives."""
    head, raw = model.head.heads[d], numpy_raw(model, x, y, d, params)
    if isinstance(head, CategoricalHead):
        return special.log_softmax(raw, axis=-1)[np.arange(len(y)), y[:, d].astype(int)], None
    logits, loc, scale = np.split(raw, 3, axis=-1)
    weights = np.exp(logits) / np.sum(np.exp(logits), axis=-1, keepdims=True)
    scale = np.log1p(np.exp(scale)) + head.min_scale
    z = (y[:, d : d + 1] - loc) / scale
    density = np.sum(weights * np.exp(-(z**2) / 2) / scale, axis=-1) / np.sqrt(2 * np.pi)
    return np.log(density), np.sum(weights * complex_step.ndtr(z), axis=-1)


def numpy_log_prob(model, x, y, params=None):
    return sum(numpy_conditional(model, x, y, d, params)[0] for d in range(len(model.graph)))


# Masks


@pytest.mark.version
@pytest.mark.parametrize(("hidden", "seed"), [((), 0), ((8, 24, 9), 3)])
def test_raw_outputs_depend_on_parents_and_on_nothing_else(hidden, seed):
    rng = np.random.default_rng(seed)
    D = 6 if hidden else 5
    dag = random_dag(rng, D)
    model = build(dag, [NormalHead(1 + d % 2) for d in range(D)], hidden=hidden, seed=seed)
    assert all(width >= len(distinct_sets(dag)) for width in hidden)
    network, (x, y) = model.network, draw(D, rows=2)
    skipless = [[np.array(part) for part in layer] for layer in model.params]
    if hidden:
        skipless[-1][0][hidden[-1] :] = 0.0

    @jax.jit
    def jacobians(params, x, y):
        one = jax.jacobian(lambda y, x, params: network.raw(params, x, y), argnums=(0, 1))
        return jax.vmap(one, in_axes=(0, 0, None))(y, x, params)

    for params in (model.params, skipless):
        by_y, by_x = map(np.asarray, jacobians(params, x, y))  # [rows, P, D], [rows, P, F]
        assert (by_x != 0).all()
        for d, columns in enumerate(model.head.slices):
            for e in range(D):
                block = by_y[:, columns, e]
                assert (block != 0).all() if e in dag[d] else (block == 0).all()


def test_units_see_subsets_and_masked_weights_have_no_gradient():
    dag = ((2,), (0, 2), ())
    model = build(dag)
    x, y = draw(3)

    def loss(params):
        density = model(x)
        density = type(density)(network=density.network, params=params, x=density.x)
        return jnp.sum(jaxmdn.log_prob(density, y))

    gradient = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(model.params))
    for (slope, _), (kernel, _), mask in zip(
        gradient, model.params, model.network.masks, strict=True
    ):
        mask, kernel = np.asarray(mask), np.asarray(kernel)
        assert mask.any()
        assert not mask.all()
        assert (slope[~mask] == 0).all()
        assert (kernel[~mask] == 0).all()
        assert np.mean(slope[mask] != 0) > 0.9


def test_initial_units_have_unit_variance_whatever_they_see():
    dag = graph.chain(6)
    model = AutoregressiveMDN(
        50, HEAD, graph=dag, hidden_features=(600,), kernel_scale=0.3, rngs=nnx.Rngs(0)
    )
    rng = np.random.default_rng(0)
    x, y = rng.choice([-1.0, 1.0], size=(100, 50)), rng.choice([-1.0, 1.0], size=(100, 6))
    inputs = np.concatenate([x, y], axis=-1)
    kernel = np.asarray(model.layers[0].kernel[...])
    for label in range(6):
        units = (inputs @ kernel)[:, label::6]
        assert units.std() == pytest.approx(1.0, rel=0.05)
    # The hidden units themselves are smaller than one, so that the raw outputs are, too.
    raw = model.network.raw(model.params, jnp.asarray(x), jnp.asarray(y))
    assert 0.1 < np.asarray(raw).std() < 0.3


# The density


DAGS = {
    "chain rule": graph.chain(3),
    "another order": ((2,), (0, 2), ()),
    "fork": ((), (0,), (0,)),
    "independent": graph.independent(3),
}


@pytest.mark.version
@pytest.mark.parametrize("name", ["another order", "fork"])
def test_log_prob_is_the_product_of_hand_built_conditionals(name):
    model = build(DAGS[name])
    x, y = draw(3)
    expected = numpy_log_prob(model, x, y)

    @jax.jit
    def everything(density, x, y):
        each = [
            (jaxmdn.log_prob(part, y[:, d : d + 1]), jaxmdn.cdf(part, y[:, d : d + 1])[:, 0])
            for d, part in enumerate(model.conditionals(x, y))
        ]
        return jaxmdn.log_prob(density, y), model.nll(x, y, reduction="none"), each

    whole, nll, each = everything(wide(model(x)), x, y)
    np.testing.assert_allclose(whole, expected, rtol=1e-11)
    np.testing.assert_allclose(nll, -expected, rtol=1e-11)
    for d, values in enumerate(each):
        for value, wanted in zip(values, numpy_conditional(model, x, y, d), strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-10)
    # float32: a few layers of sums of some 20 terms, amplified by 1 / scale.
    narrow = jaxmdn.log_prob(model(x.astype(np.float32)), y.astype(np.float32))
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, expected, rtol=2e-4, atol=2e-4)


def test_an_order_of_its_own_is_a_relabelling():
    """A model over outputs in another order, its kernels relabelled, is the same density."""
    model, order = build(graph.chain(3)), [2, 0, 1]  # new output i is old output order[i]
    relabelled = build(tuple(tuple(order.index(p) for p in graph.chain(3)[d]) for d in order))
    assert relabelled.graph == ((1, 2), (), (1,))
    x, y = draw(3)
    F_ = F + np.array(order)
    columns = np.concatenate([np.arange(9 * d, 9 * d + 9) for d in order])
    for layer, ours in zip(model.layers, relabelled.layers, strict=True):
        kernel, bias = np.array(layer.kernel[...]), np.array(layer.bias[...])
        if layer is model.layers[0]:
            kernel[F:] = kernel[F_]
        if layer is model.layers[-1]:
            kernel[-3:] = kernel[-3:][order]
            kernel, bias = kernel[:, columns], bias[columns]
        ours.kernel[...], ours.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
    # The sets, sorted by size and then by content, are relabelled to the sets of the same rank.
    actual = jaxmdn.log_prob(wide(relabelled(x)), y[:, order])
    np.testing.assert_allclose(actual, numpy_log_prob(model, x, y), rtol=1e-11)


def test_density_integrates_to_one():
    model = build(((1,), ()))
    x, _ = draw(2, rows=2)
    edges = np.linspace(-25.0, 25.0, 401)  # steps far below every scale: see test_contract
    y = np.stack(np.meshgrid(edges, edges, indexing="ij"), axis=-1)
    for row in x:
        values = np.exp(jaxmdn.log_prob(wide(model(row)), y))
        mass = integrate.trapezoid(integrate.trapezoid(values, edges), edges)
        assert mass == pytest.approx(1.0, abs=1e-6)


def test_samples_follow_the_conditionals():
    model = build(DAGS["another order"])
    x, _ = draw(3, rows=2)
    density = model(x)
    sampler = jax.jit(lambda key, density: jaxmdn.sample(key, density, (4000,)))
    y = np.asarray(sampler(jax.random.key(0), density), np.float64)
    assert y.shape == (4000, 2, 3)
    pits = []
    for row in range(2):
        wide_x = np.repeat(x[row : row + 1], 4000, axis=0)
        pits.append([numpy_conditional(model, wide_x, y[:, row], d)[1] for d in range(3)])
    pits = np.array(pits)  # [row, output, sample]: Rosenblatt's numbers, independent and uniform
    for u in pits.reshape(6, -1):
        assert stats.kstest(u, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(pits.reshape(6, -1))[~np.eye(6, dtype=bool)]
    assert np.max(np.abs(correlation)) < 4.5 / np.sqrt(4000)


def test_affine_is_a_change_of_variables():
    model = build(DAGS["fork"])
    x, y = draw(3)
    first = (np.array([1.0, -2.0, 0.5]), np.array([2.0, -0.5, 3.0]))
    second = (np.array([0.3, 0.0, 1.0]), np.array([4.0]))
    density = wide(model(x))
    moved = density
    for shift, scale in (first, second):
        moved = moved.affine(jnp.asarray(shift), jnp.asarray(scale))
    z = ((y - second[0]) / second[1] - first[0]) / first[1]
    log_det = np.sum(np.log(np.abs(first[1] * second[1])))
    expected = numpy_log_prob(model, x, z) - log_det

    @jax.jit
    def everything(density, moved, y):
        each = moved.conditionals(y)
        total = sum(jaxmdn.log_prob(each[d], y[:, d : d + 1]) for d in range(3))
        draws = [jaxmdn.sample(jax.random.key(1), part, 5) for part in (density, moved)]
        return jaxmdn.log_prob(moved, y), total, draws

    whole, total, (plain, ours) = everything(density, moved, y)
    np.testing.assert_allclose(whole, expected, rtol=1e-11)
    np.testing.assert_allclose(total, expected, rtol=1e-11)
    image = second[0] + second[1] * (first[0] + first[1] * np.asarray(plain))
    np.testing.assert_allclose(ours, image, rtol=1e-11, atol=1e-11)


def test_batches_jit_and_vmap_agree():
    model = build(DAGS["chain rule"])
    x, y = draw(3)
    expected = numpy_log_prob(model, x, y)

    @jax.jit
    def several(density, y):
        return (
            jaxmdn.log_prob(density, y),
            jax.vmap(lambda x, y: jaxmdn.log_prob(wide(model(x)), y))(density.x, y),
            jaxmdn.log_prob(density.take(jnp.array(2)), y[2]),
            jaxmdn.log_prob(density, jnp.broadcast_to(y[2], (4, 1, 3))),
        )

    batch, mapped, one, outer = several(wide(model(x)), y)
    np.testing.assert_allclose(batch, expected, rtol=1e-11)
    np.testing.assert_allclose(mapped, expected, rtol=1e-11)
    np.testing.assert_allclose(one, expected[2], rtol=1e-11)
    assert outer.shape == (4, 6)
    np.testing.assert_allclose(outer[3, 2], expected[2], rtol=1e-11)
    density = model(x)
    assert (density.batch_shape, density.event_dim, density.discrete) == ((6,), 3, False)
    assert nnx.jit(lambda model, x: model(x))(model, x).batch_shape == (6,)


def test_gradients_against_complex_steps_of_numpy():
    model = build(DAGS["chain rule"])
    x, y = draw(3)
    network = model.network
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
    rng = np.random.default_rng(5)
    directions = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    dx, dy = rng.normal(size=x.shape), rng.normal(size=y.shape)
    weights = rng.uniform(size=6)

    @jax.jit
    def slopes(params, x, y):
        def loss(params, x, y):
            density = type(model(x))(network=network, params=params, x=x)
            return jnp.sum(jnp.asarray(weights) * jaxmdn.log_prob(density, y))

        def fused(x, y):
            return -model.nll(x, y, weights=jnp.asarray(weights), reduction="sum")

        return jax.grad(loss, (0, 1, 2))(params, x, y), jax.grad(fused, (0, 1))(x, y)

    (by_params, *by_data), by_fused = slopes(params, x, y)

    leaves, tree = jax.tree.flatten(params)

    def total(x, y, *leaves):
        return np.sum(weights * numpy_log_prob(model, x, y, jax.tree.unflatten(tree, leaves)))

    def rise(dx, dy, dparams):
        return complex_step.derivative(total, [x, y, *leaves], [dx, dy, *jax.tree.leaves(dparams)])

    still = jax.tree.map(np.zeros_like, params)
    along = sum(
        np.sum(a * b)
        for a, b in zip(jax.tree.leaves(by_params), jax.tree.leaves(directions), strict=True)
    )
    np.testing.assert_allclose(along, rise(0 * x, 0 * y, directions), rtol=1e-10)
    expected = rise(dx, 0 * y, still), rise(0 * x, dy, still)
    for gradients in (by_data, by_fused):
        along = [np.sum(np.asarray(g) * v) for g, v in zip(gradients, (dx, dy), strict=True)]
        np.testing.assert_allclose(along, expected, rtol=1e-10)


def test_classes_and_numbers_side_by_side():
    heads = [CategoricalHead(3), NormalHead(3), CategoricalHead(2)]
    model = build(((), (0,), (0, 1)), heads)
    x, y = draw(3)
    y[:, 0], y[:, 2] = [0, 1, 2, 2, 1, 0], [0, 1, 1, 0, 1, 0]
    density = wide(model(x))
    assert not density.discrete
    np.testing.assert_allclose(jaxmdn.log_prob(density, y), numpy_log_prob(model, x, y), rtol=1e-11)
    shifted = density.affine(jnp.array([0.0, 2.0, 0.0]), jnp.array([1.0, 3.0, 1.0]))
    moved = np.stack([y[:, 0], 2.0 + 3.0 * y[:, 1], y[:, 2]], axis=-1)
    expected = numpy_log_prob(model, x, y) - np.log(3.0)
    np.testing.assert_allclose(jaxmdn.log_prob(shifted, moved), expected, rtol=1e-11)
    draws = np.asarray(jaxmdn.sample(jax.random.key(0), model(x[0]), (20000,)))
    assert draws.dtype == np.float64
    frequency = np.mean(draws[:, :1] == np.arange(3), axis=0)
    expected = special.softmax(numpy_raw(model, x[:1], y[:1], 0)[0])
    np.testing.assert_allclose(frequency, expected, atol=4.5 * 0.5 / np.sqrt(20000))

    classes = build(((), (0,)), [CategoricalHead(3), CategoricalHead(2)])
    density = classes(x[0])
    assert density.discrete
    cells = jnp.array([[a, b] for a in range(3) for b in range(2)])
    probability = np.exp(np.asarray(jaxmdn.log_prob(density, cells)))
    np.testing.assert_allclose(probability.sum(), 1.0, rtol=1e-6)
    draws = jaxmdn.sample(jax.random.key(0), density, (20000,))
    assert jnp.issubdtype(draws.dtype, jnp.integer)
    frequency = np.mean((np.asarray(draws)[:, None] == np.asarray(cells)).all(-1), axis=0)
    np.testing.assert_allclose(frequency, probability, atol=4.5 * 0.5 / np.sqrt(20000))


def test_no_closed_form_is_a_type_error():
    density = build(DAGS["fork"])(np.zeros(F))
    for function in (jaxmdn.mean, jaxmdn.variance, jaxmdn.covariance):
        with pytest.raises(TypeError, match="not defined for AutoregressiveDensity"):
            function(density)
    with pytest.raises(TypeError, match="not defined for AutoregressiveDensity"):
        jaxmdn.cdf(density, jnp.zeros(3))


def test_nan_reaches_what_depends_on_it_and_nothing_else():
    model = build(DAGS["another order"])  # 2 -> 0, (0, 2) -> 1
    x, y = draw(3)
    clean = model.conditionals(x, y)
    y[0, 0] = np.nan
    each = [np.asarray(jaxmdn.mean(part))[:, 0] for part in model.conditionals(x, y)]
    for d in (0, 2):
        np.testing.assert_allclose(each[d], np.asarray(jaxmdn.mean(clean[d]))[:, 0])
    assert np.isnan(each[1]).tolist() == [True] + [False] * 5
    assert np.isnan(jaxmdn.log_prob(model(x), y)).tolist() == [True] + [False] * 5


# Missing outputs


def test_missing_outputs_are_integrated_out_exactly():
    """Chain rule over three outputs: the last, or the last two, or all of them are missing."""
    model = build(graph.chain(3))
    x, y = draw(3)
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0], [1, 1, 1]], bool)
    each = np.stack([numpy_conditional(model, x, y, d)[0] for d in range(3)], axis=-1)
    expected = -np.sum(np.where(mask, each, 0.0), axis=-1)
    # That this is the marginal density: integrate the last output of the second row away.
    grid = np.linspace(-30.0, 30.0, 4001)
    rows = np.stack([np.full_like(grid, y[1, 0]), np.full_like(grid, y[1, 1]), grid], axis=-1)
    joint = np.exp(numpy_log_prob(model, np.repeat(x[1:2], 4001, axis=0), rows))
    assert -np.log(integrate.trapezoid(joint, grid)) == pytest.approx(expected[1], rel=1e-7)

    holes = np.where(mask, y, np.nan)
    weights = np.array([1.0, 2.0, 0.5, 3.0, 0.0, 1.0])
    np.testing.assert_allclose(
        model.nll(x, holes, mask=mask, reduction="none"), expected, rtol=1e-11
    )
    kept = weights * mask.any(-1)
    mean = np.sum(kept * expected) / np.sum(kept)

    @jax.jit
    def value_and_gradients(x, y, mask):
        def loss(x, y):
            return model.nll(x, y, mask=mask, weights=jnp.asarray(weights))

        return jax.value_and_grad(loss, (0, 1))(x, y)

    x[3] = np.nan  # a row without outputs has no say at all
    value, gradients = value_and_gradients(x, holes, jnp.asarray(mask))
    np.testing.assert_allclose(value, mean, rtol=1e-11)
    filled = value_and_gradients(np.nan_to_num(x), np.nan_to_num(holes, nan=7.0), jnp.asarray(mask))
    for gradient, other in zip(gradients, filled[1], strict=True):
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient, other)
    assert (gradients[1][~mask] == 0).all()
    assert (gradients[0][kept == 0] == 0).all()
    by_model = nnx.grad(lambda model: model.nll(x, holes, mask=mask))(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(by_model))
    assert model.nll(x, holes, mask=np.zeros((6, 3), bool)) == 0.0


def test_a_missing_parent_of_an_observed_child():
    model = build(DAGS["fork"])  # 0 -> 1, 0 -> 2
    x, y = draw(3)
    mask = np.ones((6, 3), bool)
    mask[2, 0] = mask[4, 1] = False
    with pytest.raises(ValueError, match=r"output 0 of row \(2,\), but not output 1"):
        model.nll(x, y, mask=mask)
    with pytest.raises(ValueError, match=r"output 0 of row \(2,\)"):
        model.nll(x, y, mask=jnp.asarray(mask))
    traced = jax.jit(lambda mask: model.nll(x, y, mask=mask, reduction="none"))
    assert np.isnan(traced(mask)).tolist() == [i == 2 for i in range(6)]
    gradient = jax.jit(jax.grad(lambda x, mask: model.nll(x, y, mask=mask)))(x, mask)
    assert np.isnan(gradient[2]).all()
    # A row of weight zero is left out whatever it lacks, and so is one without any output.
    weights = jnp.ones(6).at[2].set(0.0)
    each = np.stack([numpy_conditional(model, x, y, d)[0] for d in range(3)], axis=-1)
    expected = -np.sum(np.where(mask, each, 0.0), axis=-1)
    expected = np.delete(expected, 2).mean()
    np.testing.assert_allclose(model.nll(x, y, mask=mask, weights=weights), expected, rtol=1e-11)
    compiled = jax.jit(lambda x, mask: model.nll(x, y, mask=mask, weights=weights))
    np.testing.assert_allclose(compiled(x, mask), expected, rtol=1e-11)
    assert np.isfinite(jax.grad(compiled)(x, mask)).all()
    row = np.ones(6, bool)
    row[2], mask[2] = False, False
    plain = np.ones((6, 3), bool) & row[:, None]
    np.testing.assert_allclose(model.nll(x, y, mask=row), model.nll(x, y, mask=plain), rtol=1e-12)
    assert np.isfinite(traced(mask)).all()


# Training


def truth(count, seed):
    """``y0 -> y1 -> y2`` with inputs; returns rows, and the joint covariance given ``x``."""
    rng = np.random.default_rng(seed)
    x, e = rng.normal(size=(count, F)), rng.normal(size=(count, 3)) * [1.0, 0.5, 0.7]
    y0 = 2.0 * x[:, 0] + e[:, 0]
    y1 = 0.9 * y0 + x[:, 1] + e[:, 1]
    y2 = -0.8 * y1 + 5.0 + e[:, 2]
    mix = np.array([[1, 0, 0], [0.9, 1, 0], [-0.72, -0.8, 1]])
    covariance = mix @ np.diag([1.0, 0.25, 0.49]) @ mix.T
    return x.astype(np.float32), np.stack([y0, y1, y2], axis=-1).astype(np.float32), covariance


def entropy(covariance):
    covariance = np.atleast_2d(covariance)
    return 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]


def trained(dag):
    x, y, _ = truth(4000, 0)
    model = AutoregressiveMDN(F, NormalHead(1), graph=dag, hidden_features=(8,), rngs=nnx.Rngs(0))
    return train.fit(
        model, x, y, num_epochs=15, batch_size=200, optimizer=optax.adam(1e-2), progress=False
    )


@pytest.mark.usefixtures("as_users_run")
def test_training_reaches_the_truth(tmp_path):
    x, y, covariance = truth(4000, 1)
    best = entropy(covariance)  # the expected NLL of the true density
    markov = trained(((), (0,), (1,)))
    nll = -float(np.mean(markov.log_prob(x, y)))
    # Fresh rows: the sample mean's own error is sqrt(3 / 2 / 4000) = 0.02, far below 0.05.
    assert abs(nll - best) < 0.05
    # The predictive density is in the target's unit, too.
    predictive = markov.predict(x)
    np.testing.assert_allclose(
        jaxmdn.log_prob(predictive, y), markov.log_prob(x, y), rtol=1e-4, atol=1e-4
    )
    # Samples at one input against the truth.
    point = np.repeat(x[:1], 1, axis=0)
    draws = np.asarray(jaxmdn.sample(jax.random.key(2), markov.predict(point), (3000,)))[:, 0]
    mean = np.array([2 * x[0, 0], 1.8 * x[0, 0] + x[0, 1], 5 - 0.8 * (1.8 * x[0, 0] + x[0, 1])])
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((draws.mean(0) - mean) / spread, 0.0, atol=0.15)
    np.testing.assert_allclose(np.cov(draws.T) / np.outer(spread, spread),
                               covariance / np.outer(spread, spread), atol=0.15)  # fmt: skip
    for d in range(3):
        assert stats.kstest(draws[:, d], stats.norm(mean[d], spread[d]).cdf).statistic < 0.1

    folder = checkpoint.save(tmp_path / "model", markov)
    loaded = checkpoint.load(folder)
    assert loaded.model.graph == ((), (0,), (1,))
    np.testing.assert_array_equal(loaded.log_prob(x, y), markov.log_prob(x, y))


@pytest.mark.nightly
@pytest.mark.usefixtures("as_users_run")
def test_training_loses_what_missing_edges_hold():
    x, y, covariance = truth(4000, 1)
    best = entropy(covariance)
    # Any full order can express the truth.
    reverse = trained(((1, 2), (2,), ()))
    assert abs(-float(np.mean(reverse.log_prob(x, y))) - best) < 0.05
    # Without edges, the loss is the outputs' mutual information given x.
    apart = trained(graph.independent(3))
    marginals = sum(entropy(covariance[d, d]) for d in range(3))
    assert marginals - best > 1.0
    assert abs(-float(np.mean(apart.log_prob(x, y))) - marginals) < 0.05


@pytest.mark.usefixtures("as_users_run")
def test_initial_density_is_the_product_of_the_marginals():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(500, 2)) * [1.5, 0.3] + [1.0, -2.0]
    y = np.concatenate([y, rng.integers(0, 3, size=(500, 1))], axis=-1)
    heads = [NormalHead(4), NormalHead(4), CategoricalHead(3)]
    model = build(graph.chain(3), heads, kernel_scale=1e-4)
    model.initialize(jax.random.key(0), jnp.asarray(y, jnp.float32), weights=jnp.ones(500))
    x = jnp.asarray(rng.normal(size=(4, F)), jnp.float32)
    first, second, third = model.conditionals(x, jnp.asarray(y[:4], jnp.float32))
    for d, part in enumerate((first, second)):
        np.testing.assert_allclose(jaxmdn.mean(part)[:, 0], y[:, d].mean(), atol=0.01)
        np.testing.assert_allclose(jaxmdn.variance(part)[:, 0], y[:, d].var(), rtol=0.02)
    frequency = np.mean(y[:, 2:] == np.arange(3), axis=0)
    np.testing.assert_allclose(third.probabilities()[0], frequency, atol=0.01)


def test_config_round_trip():
    heads = [NormalHead(2, scale_link="exp"), CategoricalHead(3)]
    model = build(((1,), ()), heads)
    config = json.loads(json.dumps(model.config()))
    again = AutoregressiveMDN.from_config(config, rngs=nnx.Rngs(0))
    assert again.head == model.head
    assert nnx.graphdef(again) == nnx.graphdef(model)
    own = build(((1,), ()), heads, activation=lambda x: jnp.tanh(x))
    x, y = draw(2)
    y[:, 1] = 1.0
    np.testing.assert_allclose(own.nll(x, y), model.nll(x, y), rtol=1e-6)
    with pytest.raises(ValueError, match="custom trunk or activation"):
        own.config()


def test_one_head_serves_every_output_of_a_graph():
    assert build(graph.chain(3)).head == build(None, [HEAD] * 3).head
    assert hash(build(graph.chain(3)).head) == hash(build(None, [HEAD] * 3).head)


X, Y = np.zeros((4, F)), np.zeros((4, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: build(None),
            ValueError,
            r"single head needs a graph .* graph=jaxmdn\.heads\.graph\.chain\(D\)",
        ),
        (lambda: build(None, []), ValueError, "heads must have one head per output, got none"),
        (lambda: build(None, ["normal"]), TypeError, "heads must be jaxmdn heads, one per output"),
        (
            lambda: build(None, [HEAD, NormalHead(2, 2)]),
            ValueError,
            "that of output 1 has event_dim 2",
        ),
        (lambda: build(((), (0,)), [HEAD]), ValueError, "parents of 1 outputs, got 2"),
        (lambda: build(((1,), (0,))), ValueError, r"AutoregressiveMDN: graph .* 0 -> 1 -> 0"),
        (
            lambda: build(graph.chain(5), hidden=(8, 4)),
            ValueError,
            "hidden_features must be at least 5, one unit for each distinct set .* got 4",
        ),
        (lambda: build(graph.chain(2), hidden=(0,)), ValueError, "hidden_features"),
        (lambda: build(graph.chain(2), activation="swosh"), ValueError, "activation must be"),
        (lambda: build(graph.chain(2), kernel_scale=-1.0), ValueError, "kernel_scale must lie"),
        (
            lambda: AutoregressiveMDN(0, HEAD, graph=((),), rngs=nnx.Rngs(0)),
            ValueError,
            "in_features must be at least 1",
        ),
        (lambda: build(graph.chain(3))(np.zeros((4, 5))), ValueError, "input features"),
        (lambda: build(graph.chain(3)).nll(X, Y[:, :2]), ValueError, "event dimension D"),
        (lambda: build(graph.chain(3)).nll(X, Y[:3]), ValueError, r"must broadcast"),
        (
            lambda: build(graph.chain(3)).nll(X, Y, mask=np.ones((4, 2), bool)),
            ValueError,
            r"mask must have one entry per row, shape \[4, 3\], got \[4, 2\]",
        ),
        (lambda: build(graph.chain(3)).nll(X, Y, mask=np.ones((4, 3))), TypeError, "boolean"),
        (lambda: build(graph.chain(3)).nll(X, Y, weights=np.ones(3)), ValueError, "weights must"),
        (lambda: build(graph.chain(3)).nll(X, Y, reduction="max"), ValueError, "reduction must"),
        (lambda: build(graph.chain(3)).nll(X, Y.astype(int)), TypeError, "real floating dtype"),
        (lambda: build(graph.chain(3))(X).conditionals(Y[:, :1]), ValueError, "conditionals: exp"),
    ],
)
def test_error_messages(user_errors, call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_head_in_other_units_keeps_each_output_s_raw_numbers():
    """Equal heads lie side by side in the raw outputs; in units of their own they no longer do."""
    family = Family("truncated_normal", lower=0.0, upper=1e7)
    heads = [FactorizedHead(family, 2), FactorizedHead("normal", 2), FactorizedHead(family, 2)]
    model = AutoregressiveMDN(1, heads, rngs=nnx.Rngs(0))
    x, y = jnp.ones((3, 1)), jnp.ones((3, 3))
    before = model.network.raw(model.params, x, y)[:, model.head.columns]
    rows = np.array([[1e6, 0.0, 0.3], [3e6, 1.0, 0.5]])
    model.head = jaxmdn.heads.in_units(model.head, rows)
    assert [head.units for head in model.head.heads] == [(2.0**20,), (1.0,), (2.0**-3,)]
    assert model.head.columns.tolist() != AutoregressiveHead(heads).columns.tolist()
    after = model.network.raw(model.params, x, y)[:, model.head.columns]
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_a_change_of_unit_leaves_a_hurdle_s_zeros_their_probability():
    heads, scale = [FactorizedHead("hurdle", 1), NormalHead(1)], np.array([10.0, 3.0])

    @jax.jit
    def change(x, y):
        density = AutoregressiveMDN(1, heads, rngs=nnx.Rngs(0))(x)
        moved = density.affine(jnp.zeros(2), jnp.asarray(scale))
        return moved.log_prob(y * scale) - density.log_prob(y)

    found = change(np.ones((2, 1)), np.array([[0.0, 1.0], [2.0, 1.0]]))
    np.testing.assert_allclose(found, [-np.log(3.0), -np.log(30.0)], rtol=1e-5)
