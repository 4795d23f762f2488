"""Streams: the steps of fit, any source of batches, moments in one pass, a known place."""

import json
import tracemalloc

import jax
import numpy as np
import optax
import pytest
from test_resume import same
from test_train import ADAM, linear_data, quick_fit, small_model

from jaxmdn import train
from jaxmdn.train import feed

pytestmark = pytest.mark.usefixtures("as_users_run")


class Batches:
    """Batches that can be gone through again; nothing tells the place among them."""

    def __init__(self, count=6, size=64, last=20):
        x, y = linear_data(size * (count - 1) + last)
        self.cuts = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]

    def __iter__(self):
        return iter(self.cuts)


def stream(batches, *, steps=24, **options):
    options = {"every": 8, "optimizer": ADAM, "progress": False, **options}
    return train.fit_stream(small_model(dropout=0.1), batches, steps=steps, **options)


def test_a_batch_of_all_rows_is_an_epoch_of_fit():
    """So does one with fewer rows than the first, of which the rest is filled up."""
    x, y = linear_data(64)
    whole = quick_fit(small_model(), x[:50], y[:50], validation=None, num_epochs=6, ema=0.5)
    maps = whole.x_standardizer, whole.y_standardizer
    options = {"optimizer": ADAM, "every": 1, "ema": 0.5, "progress": False}
    # The start is that of the same rows; the first batch, which alone is larger, has no weight.
    start = small_model()
    quick_fit(start, x[:50], y[:50], validation=None, num_epochs=1, optimizer=optax.sgd(0.0))
    rest = [(x[:50], y[:50])] * 6
    found = train.fit_stream(
        start, [*rest], steps=6, standardizer=maps, initialize=False, **options
    )
    for name in ("train_nll", "grad_norm"):
        np.testing.assert_allclose(found.history[name][1:], whole.history[name][1:], rtol=1e-3)
    np.testing.assert_allclose(found.log_prob(x, y), whole.log_prob(x, y), rtol=1e-3, atol=1e-3)


def test_rows_that_fill_up_a_batch_do_not_matter():
    short, weighted = Batches(count=3), []
    for x, y in short:
        rows = np.arange(64) % len(x)
        weighted.append((x[rows], y[rows], (np.arange(64) < len(x)).astype(np.float32)))
    results = [stream(batches, steps=3, every=3) for batches in (short, weighted)]
    np.testing.assert_allclose(*(r.history["train_nll"][1] for r in results), rtol=1e-6)
    # Nor do batches of which nothing counts; of them alone the loss is zero.
    nothing = [(x, y, np.zeros(len(x))) for x, y in short]
    history = stream([*weighted, *nothing], steps=6, every=3).history
    unit = results[0].y_standardizer.log_det
    np.testing.assert_allclose(
        history["train_nll"][1:], [results[1].history["train_nll"][1], unit], rtol=1e-6
    )


def test_a_batch_is_filled_up_with_its_own_rows():
    cuts = [feed.as_rows(cut) for cut in Batches(count=3, last=20).cuts]
    filled = feed.Cutter(cuts[0]).stack(cuts, 0).take(slice(128, 192))
    np.testing.assert_array_equal(filled.x, np.resize(cuts[2].x, (64, 2)))
    np.testing.assert_array_equal(filled.weights, np.arange(64) < 20)


@pytest.mark.parametrize("kind", ["iterable", "table"])
def test_a_stream_that_goes_on_is_the_stream_that_never_stopped(tmp_path, kind):
    def batches():
        if kind == "iterable":
            return Batches()
        return train.ShuffledBatches(*linear_data(340), batch_size=64, seed=3)

    held = linear_data(50, seed=1)
    options = {"checkpoint": tmp_path / "run", "save_every": 1, "validation": held}
    whole = stream(batches(), validation=held)
    stream(batches(), steps=16, **options)
    same(stream(batches(), resume=True, **options), whole)
    assert whole.best_epoch == np.nanargmin(whole.history["valid_nll"])
    with pytest.raises(ValueError, match="started with every 8, now it is 4"):
        stream(batches(), resume=True, **{**options, "every": 4})


def test_a_generator_is_gone_through_once(tmp_path):
    batches = Batches(count=11)
    options = {"steps": 100, "checkpoint": tmp_path / "run"}
    over = stream(iter(batches), **options)
    same(stream(iter(batches), resume=True, **options), over)  # at its end, nothing is left to do
    assert len(stream(iter(batches), steps=100).history["seconds"]) == 1 + 2
    assert len(stream(iter(batches), steps=11).history["seconds"]) == 1 + 2
    assert len(stream(batches, steps=24).history["seconds"]) == 1 + 3


def test_shuffled_batches_hold_every_row_once_a_pass(tmp_path):
    path = tmp_path / "x.npy"
    table = np.lib.format.open_memmap(path, "w+", np.float32, (1003, 2))
    table[:] = np.arange(1003)[:, None]
    batches = train.ShuffledBatches({"a": np.load(path, mmap_mode="r")}, table[:, :1], batch_size=4)
    first, second = ([np.asarray(x["a"][:, 0]) for x, _ in batches] for _ in range(2))
    assert {len(part) for part in first} == {4, 3}
    for found in (first, second):
        np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(1003))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    assert np.abs(np.diff(np.concatenate(first))).mean() > 100
    iterator = iter(train.ShuffledBatches(table, table[:, :1], batch_size=4))
    for _ in range(70):
        next(iterator)
    other = iter(train.ShuffledBatches(table, table[:, :1], batch_size=4))
    other.set_state(json.loads(json.dumps(iterator.get_state())))
    np.testing.assert_array_equal(next(other)[0], next(iterator)[0])


def test_moments_in_one_pass_are_those_of_all_rows():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1000, 3)) * [1.0, 1e-3, 1e4] + [0.0, 5.0, 1e9]
    values = np.concatenate([values, np.full((1000, 1), 7.0)], axis=1)
    weights = rng.uniform(size=1000) * (rng.uniform(size=1000) < 0.8)
    cuts = np.sort(rng.integers(0, 1000, 20))
    parts = zip(np.split(values, cuts), np.split(weights, cuts), strict=True)
    closure = ("affine", "scale", "affine", "none")
    found = train.Standardizer.from_batches(parts, closure=closure)
    mean = np.average(values.astype(np.longdouble), axis=0, weights=weights)
    spread = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weights))
    np.testing.assert_allclose(found.shift, [mean[0], 0.0, mean[2], 0.0], rtol=1e-13, atol=1e-13)
    size = np.sqrt(np.average(values[:, 1] ** 2, weights=weights))
    np.testing.assert_allclose(found.scale, [spread[0], size, spread[2], 1.0], rtol=1e-10)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"batches": []}, ValueError, "batches is empty"),
        ({"batches": [np.zeros((4, 2))]}, TypeError, r"every batch must be a tuple \(x, y\)"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
    ],
)
def test_streams_are_checked(user_errors, change, kind, message):
    with pytest.raises(kind, match=message):
        stream(**{"batches": Batches(), **change})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x, y: (x[:, :1], y), r"x of batch 200 has shape \[64, 1\]; the first batch"),
        (lambda x, y: (np.tile(x, (2, 1)), np.tile(y, (2, 1))), "none may have more"),
        (lambda x, y: (x, np.where(np.arange(64) == 3, np.nan, y.T).T), "row 3 of batch 200"),
    ],
)
def test_a_later_batch_is_named(user_errors, bad, message):
    cuts = Batches(count=2, last=64).cuts
    batches = [cuts[i % 2] for i in range(200)]
    with pytest.raises(ValueError, match=message):
        stream([*batches, bad(*cuts[0])], steps=300, every=300)


def test_what_goes_to_the_device_together_is_like_the_first_batch_too(user_errors):
    """Batches 0 to 63 go together: 64 is compared with batch 0, and whole numbers do not spread."""
    cutter = feed.Cutter(feed.as_rows((np.ones((4, 2), int), np.ones((4, 1)))))
    with pytest.raises(
        ValueError, match=r"x of batch 64 has shape \[4, 3\]; the first batch has 4"
    ):
        cutter.stack([feed.as_rows((np.ones((4, 3)), np.ones((4, 1))))], 64)
    halves = [feed.as_rows((np.full((4, 2), value), np.ones((4, 1)))) for value in (1, 0.5)]
    assert cutter.stack(halves, 64).x[4, 0] == 0.5


def test_validation_rows_without_a_finite_loss_are_named(user_errors):
    x, y = linear_data(64)
    far = x, np.full_like(y, 1e30)
    for train_on, name in ((stream, "fit_stream"), (quick_fit, "fit")):
        given = ([(x, y)],) if train_on is stream else (small_model(), x, y)
        with pytest.raises(ValueError, match=rf"{name}\(validation\): the loss .* extreme values"):
            train_on(*given, validation=far)


@pytest.mark.nightly
def test_grain_and_parquet_files(tmp_path):
    """A Parquet folder by Grain, which goes on at its place."""
    grain = pytest.importorskip("grain")
    pandas = pytest.importorskip("pandas")
    x, y = linear_data(1000)
    for part in range(4):
        rows = slice(250 * part, 250 * (part + 1))
        frame = pandas.DataFrame({"a": x[rows, 0], "b": x[rows, 1], "y": y[rows, 0]})
        frame.to_parquet(tmp_path / f"{part}.parquet")

    def batches():
        files = sorted(str(path) for path in tmp_path.glob("*.parquet"))
        parts = grain.MapDataset.source(files).shuffle(0).repeat()
        rows = grain.experimental.InterleaveIterDataset(
            parts.map(grain.experimental.ParquetIterDataset), cycle_length=2
        )
        return rows.batch(64).map(
            lambda row: (np.stack([row["a"], row["b"]], axis=-1), row["y"][:, None])
        )

    whole = stream(batches())
    options = {"checkpoint": tmp_path / "run", "save_every": 1}
    stream(batches(), steps=16, **options)
    same(stream(batches(), resume=True, **options), whole)
    assert whole.history["train_nll"][-1] < whole.history["train_nll"][1]


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_rows():
    rng = np.random.default_rng(0)

    def rows():
        while True:
            x = rng.normal(size=(256, 2)).astype(np.float32)
            yield x, 3 * x[:, :1]

    def peak(steps):
        tracemalloc.start()
        stream(rows(), steps=steps, every=100)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(100)
    held = len(jax.live_arrays())
    assert peak(4000) < peak(400) + 2e6, "3,600 batches more are 14 MB"
    assert len(jax.live_arrays()) <= held + 5
