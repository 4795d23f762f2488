"""Graphs between outputs, and the joint normal whose whitening factor has a graph's zeros."""

import itertools
import json

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import stats

import jaxmdn
from jaxmdn import NormalHead
from jaxmdn.heads import from_config, graph, to_config


def random_dag(rng, D, *, ordered=False):
    """A random graph; ``ordered``: with parents before children."""
    rank = np.arange(D) if ordered else rng.permutation(D)
    edge = rng.random((D, D)) < rng.random()
    return tuple(tuple(p for p in range(D) if rank[p] < rank[d] and edge[d, p]) for d in range(D))


def adjacency(dag):
    """``A[p, d]``: whether p is a parent of d."""
    A = np.zeros((len(dag), len(dag)), int)
    for d, parents in enumerate(dag):
        A[list(parents), d] = 1
    return A


# Graphs


def test_orders_and_descendants_against_powers_of_the_adjacency_matrix():
    rng = np.random.default_rng(0)
    for _ in range(300):
        D = int(rng.integers(1, 8))
        dag = random_dag(rng, D)
        assert graph.validate(dag, num_outputs=D) == dag
        powers = [np.linalg.matrix_power(adjacency(dag), n) for n in range(D)]
        order = graph.topological_order(dag)
        assert sorted(order) == list(range(D))
        assert all(order.index(p) < order.index(d) for d in range(D) for p in dag[d])
        longest = [max(n for n in range(D) if powers[n][:, d].any()) for d in range(D)]
        levels = graph.generations(dag)
        assert levels == tuple(
            tuple(d for d in range(D) if longest[d] == n) for n in range(max(longest) + 1)
        )
        reach = sum(powers[1:], np.zeros((D, D), int))
        for below, matrix in ((graph.children(dag), powers[1] if D > 1 else reach),
                              (graph.descendants(dag), reach)):  # fmt: skip
            assert below == tuple(tuple(np.flatnonzero(row)) for row in matrix)


def test_every_graph_with_a_cycle_is_refused_and_the_cycle_is_one():
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        D = int(rng.integers(2, 7))
        edge = (rng.random((D, D)) < 0.3) & ~np.eye(D, dtype=bool)
        parents = tuple(tuple(np.flatnonzero(row).tolist()) for row in edge)
        cyclic = np.linalg.matrix_power(adjacency(parents), D).any()
        if not cyclic:
            assert graph.validate(parents) == parents
            continue
        refused += 1
        with pytest.raises(ValueError, match="cycle") as error:
            graph.validate(parents)
        path = [int(n) for n in str(error.value).split("got ")[1].split(" (")[0].split(" -> ")]
        assert path[0] == path[-1]
        assert len(path) > 2
        assert all(p in parents[d] for p, d in itertools.pairwise(path))
    assert refused > 50


def test_canonical_form():
    assert graph.validate([[], [np.int64(0)], [1, 0]]) == graph.chain(3)
    assert all(type(p) is int for row in graph.validate([[], [np.int64(0)]]) for p in row)
    assert graph.independent(2) == ((), ())
    assert graph.chain(1) == ((),) == graph.independent(1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: graph.validate([[], [2]]), ValueError, r"output 1 has the parent 2, which does"),
        (lambda: graph.validate([[], [-1]]), ValueError, r"parent -1, .* from 0 to 1"),
        (lambda: graph.validate([[0]]), ValueError, "output 0 is its own parent"),
        (lambda: graph.validate([[], [0, 0]]), ValueError, "parent 0 more than once"),
        (lambda: graph.validate([[2], [0], [1]]), ValueError, r"got 0 -> 1 -> 2 -> 0 \(an arrow"),
        (lambda: graph.validate([[], []], num_outputs=3), ValueError, "parents of 3 outputs, got"),
        (lambda: graph.validate([]), ValueError, "at least one output"),
        (lambda: graph.validate("ab"), TypeError, "must list each output's parents"),
        (lambda: graph.validate([0, 1]), TypeError, "must list each output's parents"),
        (lambda: graph.validate([[], [0.0]]), TypeError, r"output 1 has the parent 0\.0"),
        (lambda: graph.chain(0), ValueError, "graph.chain: num_outputs must be at least 1"),
        (
            lambda: NormalHead(2, 3, covariance="full", graph=((), (2,), ())),
            ValueError,
            r"output 2 is a parent of output 1; .* y\[\.\.\., \[0, 2, 1\]\]",
        ),
        (lambda: NormalHead(2, 2, graph=((), (0,))), ValueError, 'graph needs covariance="full"'),
        (
            lambda: NormalHead(2, 3, covariance="full", graph=((), (0,))),
            ValueError,
            "NormalHead: graph must list the parents of 3 outputs, got 2",
        ),
    ],
)
def test_error_messages(user_errors, call, error, message):
    with pytest.raises(error, match=message):
        call()


# The joint normal

D = 5
DAG = ((), (0,), (), (1, 2), (0, 3))
EMPTY, WHOLE = graph.independent(D), graph.chain(D)


def make(dag=DAG, K=3, **options):
    return NormalHead(K, D, covariance="full", graph=dag, **options)


def structural(head, raw):
    """Weights, loc and covariances from the linear equations that the documented layout states."""
    raw, K = np.asarray(raw), head.num_components
    shared = 1 if head.tied else K
    sizes = [K, K * D, shared * D, shared * sum(map(len, head.graph))]
    logits, loc, scale, edges = np.split(raw, np.cumsum(sizes)[:-1])
    scale = np.log1p(np.exp(scale)).reshape(shared, D) + head.min_scale
    covariances = []
    for s, row in zip(scale, edges.reshape(shared, -1), strict=True):
        slopes, numbers = np.zeros((D, D), raw.dtype), iter(row)
        for d, parents in enumerate(head.graph):
            for p in parents:
                slopes[d, p] = -next(numbers)
        mix = np.linalg.inv(np.eye(D) - slopes)  # y - loc = slopes (y - loc) + scale noise
        covariances.append(mix @ np.diag(s**2) @ mix.T)
    covariances = np.broadcast_to(covariances, (K, D, D))
    weights = np.exp(logits) / np.sum(np.exp(logits))
    return oracles.Dense(weights, loc.reshape(K, D), covariances)


def dense_log_prob(head, raw, y):
    rows = zip(np.asarray(raw), np.asarray(y), strict=True)
    return np.array([complex_step.log_density(structural(head, r), target) for r, target in rows])


def draw(head, rows=6, dtype=jnp.float64):
    rng = np.random.default_rng(7)
    return (
        jnp.asarray(rng.normal(size=(rows, head.num_outputs)), dtype),
        jnp.asarray(rng.normal(size=(rows, D)), dtype),
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dag", [DAG, EMPTY, WHOLE])
def test_log_prob_against_the_dense_oracle(dag, tied):
    head = make(dag, tied=tied)
    raw, y = draw(head)
    expected = dense_log_prob(head, raw, y)
    np.testing.assert_allclose(jaxmdn.log_prob(head(raw), y), expected, rtol=1e-11)
    narrow = jaxmdn.log_prob(head(raw.astype(jnp.float32)), y.astype(jnp.float32))
    assert narrow.dtype == jnp.float32
    # Sums of some twenty terms of up to 50 in float32 (6e-8 each).
    np.testing.assert_allclose(narrow, expected, rtol=3e-5, atol=3e-5)


def test_the_number_of_raw_outputs_is_that_of_the_edges():
    assert make(EMPTY).num_outputs == NormalHead(3, D).num_outputs
    assert make(WHOLE).num_outputs == NormalHead(3, D, covariance="full").num_outputs
    assert make(DAG).num_outputs == make(EMPTY).num_outputs + 3 * 5
    assert make(DAG, tied=True).num_outputs == make(EMPTY, tied=True).num_outputs + 5


def test_extreme_graphs_are_the_plain_heads():
    """The layouts agree, so the same raw outputs give the same density."""
    for dag, plain in ((EMPTY, NormalHead(3, D)), (WHOLE, NormalHead(3, D, covariance="full"))):
        raw, y = draw(make(dag))
        ours, theirs = (jaxmdn.log_prob(head(raw), y) for head in (make(dag), plain))
        np.testing.assert_allclose(ours, theirs, rtol=1e-13)


def test_zeros_of_the_factor_and_conditional_independence():
    rng = np.random.default_rng(3)
    for dag in (DAG, *(random_dag(rng, D, ordered=True) for _ in range(4))):
        head = make(dag)
        components = head(draw(head)[0]).components
        W = np.asarray(components.whitening_tril)
        allowed = adjacency(dag).T.astype(bool) | np.eye(D, dtype=bool)
        assert (W[..., ~allowed] == 0).all()
        assert (W[..., allowed] != 0).all()
        # Given its parents, an output is uncorrelated with every other one before it.
        covariance = np.asarray(components.covariance(), np.float64)
        for d, parents in enumerate(dag):
            given = list(parents)
            for e in set(range(d)) - set(parents):
                pair = [d, e]
                cross = covariance[..., pair, :][..., given]
                inner = covariance[..., given, :][..., given]
                left = covariance[..., pair, :][..., pair] - cross @ np.linalg.solve(
                    inner, np.swapaxes(cross, -1, -2)
                )
                size = np.sqrt(left[..., 0, 0] * left[..., 1, 1])
                assert np.max(np.abs(left[..., 0, 1] / size)) < 1e-9


@pytest.mark.parametrize("tied", [False, True])
def test_fused_likelihoods_against_the_oracle_in_value_and_gradient(tied):
    head = make(tied=tied)
    raw, y = draw(head)
    hidden = jnp.asarray(np.random.default_rng(8).normal(size=(6, 4)))
    kernel = jnp.asarray(0.2 * np.random.default_rng(9).normal(size=(4, head.num_outputs)))
    bias = raw[0]
    through = np.asarray(hidden @ kernel + bias)
    wanted = -dense_log_prob(head, raw, y).mean(), -dense_log_prob(head, through, y).mean()
    direction = np.random.default_rng(10).normal(size=raw.shape)
    slopes = [
        complex_step.derivative(lambda x: -dense_log_prob(head, x, y).mean(), [point], [direction])
        for point in (raw, through)
    ]

    @jax.jit
    def both(raw, y):
        out = []
        for name in (None, "xla", "xla_chunked"):

            def plain(raw, name=name):
                return jaxmdn.nll(head, raw, y, implementation=name, chunk_size=4)

            def linear(bias_rows, name=name):  # an output layer that sees the row's number, too
                tall = jnp.concatenate([hidden, jnp.eye(6)], axis=-1)
                deep = jnp.concatenate([kernel, bias_rows])
                return jaxmdn.linear_nll(head, tall, deep, bias, y, implementation=name)

            zero = jnp.zeros_like(raw)
            out.append((jax.value_and_grad(plain)(raw), jax.value_and_grad(linear)(zero)))
        return out

    for results in both(raw, y):
        for (value, gradient), expected, rise in zip(results, wanted, slopes, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-11)
            np.testing.assert_allclose(np.sum(gradient * direction), rise, rtol=1e-9)


def test_inverse_and_what_lies_beyond_the_graph():
    head = make(min_weight=0.05, scale_link="exp")
    raw, _ = draw(head)
    mixture = head(raw)
    again = head(head.inverse(mixture))
    for a, b in zip(jax.tree.leaves(again.components), jax.tree.leaves(mixture.components)):  # noqa: B905
        np.testing.assert_allclose(a, b, rtol=1e-10)
    np.testing.assert_allclose(again.weights(), mixture.weights(), rtol=1e-10)
    foreign = NormalHead(3, D, covariance="full")(draw(make(WHOLE))[0])
    assert np.isnan(make().inverse(foreign)).any(axis=-1).all()
    assert not np.isnan(make(WHOLE).inverse(foreign)).any()


def test_json_hash_and_equality():
    head = make([[], [0], [], [2, 1], [3, 0]])
    assert head == make()
    assert hash(head) == hash(make())
    assert head != make(WHOLE)
    assert head != NormalHead(3, D, covariance="full")
    again = from_config(json.loads(json.dumps(to_config(head))))
    assert again == head
    assert again.graph == DAG
    assert from_config({"type": "NormalHead", "num_components": 2}) == NormalHead(2)


def test_initial_bias_regresses_on_the_parents():
    rng = np.random.default_rng(4)
    y = rng.normal(size=(400, D)) @ rng.normal(size=(D, D)) * [1, 10, 0.1, 3, 1] + [5, 0, 1, -9, 2]
    weights = rng.uniform(size=400)
    single = make(K=1, min_scale=0.0)
    components = single(
        jaxmdn.heads.initializers.from_targets(
            jax.random.key(0), single, jnp.asarray(y), weights=jnp.asarray(weights)
        )
    ).components
    mean = np.average(y, axis=0, weights=weights)
    np.testing.assert_allclose(components.loc[0], mean, rtol=1e-6, atol=1e-6)
    root = np.sqrt(weights)[:, None]
    W = np.asarray(components.whitening_tril[0])
    for d, parents in enumerate(DAG):
        design, target = (y - mean)[:, list(parents)] * root, ((y - mean)[:, d : d + 1]) * root
        slope = np.linalg.lstsq(design, target)[0][:, 0]
        scale = np.sqrt(np.sum((target[:, 0] - design @ slope) ** 2) / weights.sum())
        # The covariance carries a jitter of 1e-6 against collinear columns.
        np.testing.assert_allclose(1 / W[d, d], scale, rtol=1e-3)
        np.testing.assert_allclose(-W[d, list(parents)] * scale, slope, rtol=1e-3, atol=1e-3)
    several = make(K=4)
    bias = jaxmdn.heads.initializers.from_targets(jax.random.key(0), several, jnp.asarray(y))
    np.testing.assert_allclose(jaxmdn.mean(several(bias)), y.mean(0), rtol=1e-6, atol=1e-6)


def test_marginal_and_conditional_densities_follow():
    """The whole inference of full normals serves: one example by dense algebra."""
    head = make(K=1)
    raw, y = draw(head)
    exact = structural(head, raw[0])
    loc, covariance = exact.loc, exact.covariances
    dims = (3, 0)
    expected = stats.multivariate_normal(
        loc[0][list(dims)], covariance[0][np.ix_(dims, dims)]
    ).logpdf(np.asarray(y[0])[list(dims)])
    actual = jaxmdn.log_prob(jaxmdn.marginal(head(raw[0]), dims), y[0][jnp.array(dims)])
    np.testing.assert_allclose(actual, expected, rtol=1e-10)
