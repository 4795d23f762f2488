"""Fits in a loop and long streams: memory stays where it is, and nothing is compiled again.

``JAXMDN_LOAD_MINUTES=60`` makes an hour of the loop, ``JAXMDN_STREAM_ROWS=1e8`` the stream longer.
"""

import gc
import os
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from programs import COUNTER
from test_train import linear_data, quick_fit, small_model

import jaxmdn
from jaxmdn import train
from jaxmdn.train import room

pytestmark = pytest.mark.usefixtures("as_users_run")
MINUTES = float(os.environ.get("JAXMDN_LOAD_MINUTES", "1"))
STREAM_ROWS = int(float(os.environ.get("JAXMDN_STREAM_ROWS", "2e6")))
WARM, LEAST = 50, 300  # fits


def resident():
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.nightly
def test_fits_in_a_loop_leave_nothing(capsys):
    """New data, a new network and a new optimizer each; predictions for tables of any length."""
    rng = np.random.default_rng(0)

    def one(seed):
        x, y = linear_data(100, seed=seed)
        options = {"optimizer": optax.adam(1e-2), "num_epochs": 1, "seed": seed}
        result = quick_fit(small_model(seed=seed), x, y, **options)
        count = int(rng.integers(1, 100))
        result.log_prob(x[:count], y[:count])

    start, fits, sizes = time.monotonic(), 0, []
    while fits < WARM + LEAST or time.monotonic() - start < 60 * MINUTES:
        one(fits)
        fits += 1
        if fits == WARM:
            compiled, held = COUNTER.spent.programs, len(jax.live_arrays())
        if fits >= WARM and fits % WARM == 0:
            sizes.append(resident())
    compiled, held = COUNTER.spent.programs - compiled, len(jax.live_arrays()) - held
    grown = (sizes[-1] - sizes[0]) / 1e6
    minutes, size = (time.monotonic() - start) / 60, sizes[-1] / 1e6
    with capsys.disabled():
        print(
            f"\n{fits} fits in {minutes:.1f} minutes: {size:.0f} MB, {grown:+.1f} MB since fit "
            f"{WARM}; {compiled} programs and {held} arrays more"
        )
    assert compiled <= 2, "a table of another power of two rows"
    assert held <= 20
    assert grown < 30, "the allocator's own; a leak of the rows alone would be 2 kB a fit"


def test_programs_are_forgotten_before_their_room_ends(monkeypatch, tmp_path):
    forgotten = []
    monkeypatch.setattr(jax, "clear_caches", lambda: forgotten.append(1))
    maps, most = tmp_path / "maps", tmp_path / "max_map_count"
    monkeypatch.setattr(room, "MAPS", maps)
    monkeypatch.setattr(room, "MOST", most)
    x, y = linear_data(20)
    quick_fit(small_model(), x, y, num_epochs=1)  # no such files: another system
    maps.write_text("a map\n" * 50)
    for count, expected in ((100, 0), (98, 1)):
        most.write_text(f"{count}\n")
        quick_fit(small_model(), x, y, num_epochs=1)
        assert len(forgotten) == expected


@pytest.mark.nightly
@pytest.mark.skipif(not room.MAPS.exists(), reason="no limit of memory maps is known here")
def test_fits_of_ever_new_shapes_do_not_end_the_process(monkeypatch, capsys):
    """Up to a thousand maps each, as users compile: without room made the sixty-first ended it."""
    monkeypatch.setattr(room, "SHARE", 0.1)
    most = int(room.MOST.read_text())
    jax.clear_caches()
    kept = []
    for count in range(200, 200 + 40 * 8, 8):
        x, y = linear_data(count)
        quick_fit(small_model(), x, y, num_epochs=1, batch_size=count // 8)
        kept.append(room.MAPS.read_bytes().count(b"\n"))
    with capsys.disabled():
        print(f"\nat most {max(kept)} memory maps of {most}")
    assert 0.1 * most < max(kept) < 0.15 * most
    assert min(np.diff(kept)) < -0.02 * most, "they were given back"


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::jaxmdn.train.ComponentWarning")  # 10^8 rows leave one of ten
def test_a_stream_is_as_fast_as_rows_in_memory(capsys):
    """20 inputs, K = 10, rows made on the fly: rows a second, the best epoch of each."""
    rng = np.random.default_rng(0)
    size, epoch, sizes = 1024, 2**17, []

    def rows(count):
        x = rng.random((count, 20), np.float32)
        return x, x[:, :1] * x[:, 1:2] + x[:, 2:3]

    def batches():
        while True:
            yield rows(size)

    def model():
        head = jaxmdn.NormalHead(10, 1)
        return jaxmdn.nn.MDN(20, head, hidden_features=(64, 64), rngs=nnx.Rngs(0))

    def watch(epoch, record):
        sizes.append(resident())

    held = rows(1000)
    options = {"validation": held, "patience": None, "progress": False}
    steps = max(STREAM_ROWS // size, 4 * epoch // size)
    for _ in range(3):  # what else runs on the machine slows one of them more than the other
        found = [
            train.fit(model(), *rows(epoch), batch_size=size, num_epochs=8, **options),
            train.fit_stream(
                model(), batches(), steps=steps, every=epoch // size, callbacks=watch, **options
            ),
        ]
        memory, stream = (max(one.history["rows_per_second"][1:]) for one in found)
        if stream >= 0.8 * memory:
            break
    grown = (sizes[-1] - sizes[1]) / 1e6
    with capsys.disabled():
        print(
            f"\n{memory:,.0f} rows a second in memory, {stream:,.0f} in a stream of "
            f"{steps * size:,}: {stream / memory:.2f}; {sizes[-1] / 1e6:.0f} MB, {grown:+.1f} MB"
        )
    assert stream >= 0.8 * memory
    assert grown < 60, "some batches wait for the device; 2e6 rows are 170 MB"
