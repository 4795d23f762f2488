"""Every public function under JAX's strict settings, and exported for any number of rows."""

from functools import partial

import jax
import numpy as np
import pytest
import questions
from flax import nnx
from jax import export

import jaxmdn
from jaxmdn import train

HEADS = questions.heads()
SLOPES = ("nll", "nll by blocks", "linear_nll", "quantile's slope", "moving samples")
few = pytest.mark.parametrize("name", ["full", "gamma"])
every = pytest.mark.parametrize("name", HEADS)


# No mean of one degree of freedom; draws of a beta round to a bound, where its density is infinite;
# a gamma of concentration below one is highest, and infinite, at zero.
UNDEFINED = {
    "student_t": ("mean", "variance", "covariance"),
    "beta": ("kl_divergence",),
    "mixed": ("modes",),
}


def asked(name, chosen, without=()):
    head = HEADS[name]
    raw, y = questions.rows(head)
    found = questions.answered(head, raw, y)
    assert len(found) > 10
    return [
        (partial(questions.QUESTIONS[which], head), raw, y)
        for which in found
        if (chosen is None or which in chosen) and which not in without
    ]


def no_rank_is_promoted(name, chosen):
    with jax.numpy_rank_promotion("raise"):
        for ask, raw, y in asked(name, chosen):
            jax.eval_shape(ask, raw, y)


def is_exported(name, chosen):
    """Traced for ``b`` rows, and right for a number of them that it has not seen."""
    (b,) = export.symbolic_shape("b")
    for ask, raw, y in asked(name, chosen):
        like = [jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype) for x in jax.tree.leaves((raw, y))]
        like = jax.tree.unflatten(jax.tree.structure((raw, y)), like)
        jax.eval_shape(ask, *like)


@few
def test_ranks(name):
    no_rank_is_promoted(name, SLOPES)


@pytest.mark.nightly
@every
def test_all_ranks(name):
    no_rank_is_promoted(name, None)


@few
def test_symbolic_rows(name, user_errors):  # annotations ask for sizes that are numbers
    short = ("nll", "linear_nll", "nll by blocks", "quantile", "crps", "conformal_interval")
    is_exported(name, (*short, "hdr_threshold"))


@pytest.mark.nightly
@every
def test_all_symbolic_rows(name, user_errors):
    is_exported(name, None)


def test_an_exported_program_is_right_for_rows_it_has_not_seen(user_errors):
    head = HEADS["scalar"]

    @jax.jit
    def ask(raw, y):
        density = head(raw)
        loss = jaxmdn.nll(head, raw, y, implementation="xla_chunked")
        return loss, jaxmdn.quantile(density, 0.3), jaxmdn.cdf(density, y)

    (b,) = export.symbolic_shape("b")
    shapes = (b, head.num_outputs), (b, 1)
    program = export.export(ask)(*(jax.ShapeDtypeStruct(shape, np.float64) for shape in shapes))
    raw, y = questions.rows(head, 300)
    for value, expected in zip(program.call(raw, y), ask(raw, y), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12)


@few
def test_no_answer_holds_a_nan(name):
    """Under ``jax_debug_nans`` any would raise."""
    with jax.debug_nans(True):
        for ask, raw, y in asked(name, ("modes", "hdr_intervals", "crps", "log_survival")):
            jax.jit(ask)(raw, y)


@pytest.mark.nightly
@every
def test_no_answer_of_all_holds_a_nan(name):
    with jax.debug_nans(True):
        for ask, raw, y in asked(name, None, without=UNDEFINED.get(name, ())):
            jax.jit(ask)(raw, y)


def test_training_without_validation_meets_no_nan(as_users_run):
    model = jaxmdn.nn.MDN(1, jaxmdn.NormalHead(2, 1), hidden_features=(4,), rngs=nnx.Rngs(0))
    x = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
    with jax.debug_nans(True):
        result = train.fit(model, x, x, num_epochs=2, validation=None, progress=False)
    assert np.isnan(result.history["valid_nll"]).all()
