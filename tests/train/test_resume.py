"""Runs that go on: bit for bit, after a kill at any moment, and what is said of damaged folders."""

import contextlib
import copy
import json
import multiprocessing
import os
import resource
import shutil
import time
from pathlib import Path

import jax
import killed
import numpy as np
import optax
import pytest
from flax import nnx
from test_train import linear_data, quick_fit, small_model

from jaxmdn.train import checkpoint, folders, resume

pytestmark = pytest.mark.usefixtures("as_users_run")
TIMES = ("seconds", "rows_per_second")


def keep(x, y, folder, *, resume=False, seed=0, **options):
    """Dropout, a schedule and a running average: all that a run carries along."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 60))
    options = {"optimizer": keep.optimizer or optimizer, "save_every": 2, **options}
    keep.optimizer = options["optimizer"]
    return quick_fit(
        small_model(dropout=0.1, seed=seed), x, y, checkpoint=folder, resume=resume, **options
    )


keep.optimizer = None


def same(one, two):
    for a, b in zip(
        *(jax.tree.leaves(nnx.state(result.model, nnx.Param)) for result in (one, two)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert set(one.history) == set(two.history)
    for name in set(one.history) - set(TIMES):
        np.testing.assert_array_equal(one.history[name], two.history[name])


def test_a_run_that_goes_on_is_the_run_that_never_stopped(tmp_path):
    x, y = linear_data()
    whole = keep(x, y, None, num_epochs=7)
    part = keep(x, y, tmp_path / "run", num_epochs=3)
    assert sorted(int(p.name) for p in (tmp_path / "run" / "search").iterdir()) == [2, 3]
    # Other parameters to start with: they come from the folder.
    rest = keep(x, y, tmp_path / "run", num_epochs=7, resume=True, seed=5)
    same(rest, whole)
    assert (rest.history["seconds"][:4] == part.history["seconds"]).all()
    assert (np.diff(rest.history["seconds"]) > 0).all()
    over = keep(x, y, tmp_path / "run", num_epochs=7, resume=True)
    same(over, whole)
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or not path.read_bytes().startswith(b"\x80\x04"), "a pickle"


def test_a_run_of_format_1_goes_on(tmp_path):
    """Its three epochs were written by an earlier commit."""
    folder = shutil.copytree(Path(__file__).parent / "format_1" / "run", tmp_path / "run")
    found = keep(*linear_data(), folder, num_epochs=5, resume=True).history
    expected = keep(*linear_data(), None, num_epochs=5).history
    assert set(found) == set(expected)
    for name in set(found) - set(TIMES):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3)
    assert round(found["seconds"][3], 3) == 1.003


def test_what_is_written_in_the_background_does_not_grow(tmp_path, monkeypatch):
    """The host's part is a copy: at the end it still says what it said when it was handed over."""
    x, y = linear_data()
    given, save = [], resume.ocp.CheckpointManager.save

    def record(self, step, *, args, **options):
        given.append((args.host.item, copy.deepcopy(args.host.item)))
        return save(self, step, args=args, **options)

    monkeypatch.setattr(resume.ocp.CheckpointManager, "save", record)
    keep(x, y, tmp_path / "run", num_epochs=5)
    assert len(given) >= 4
    for now, then in given:
        assert now == then
        assert len(now["path"]) == now["epoch"]


def test_nothing_else_is_overwritten(tmp_path):
    x, y = linear_data()
    folder = tmp_path / "run"
    keep(x, y, folder, num_epochs=2)
    with pytest.raises(FileExistsError, match="pass resume=True to go on"):
        keep(x, y, folder)
    with pytest.raises(ValueError, match=r"started with rows \{'count': 270.* now it is"):
        keep(x, y + 1.0, folder, resume=True)
    with pytest.raises(ValueError, match="started with batch_size 64, now it is 32"):
        keep(x, y, folder, resume=True, batch_size=32)
    with pytest.raises(ValueError, match="other parameters or another optimizer"):
        quick_fit(small_model(dropout=0.1), x, y, checkpoint=folder, resume=True)
    with pytest.raises(ValueError, match="fit: save_every must be at least 1, got 0"):
        keep(x, y, tmp_path / "none", save_every=0)
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="something else than a training run"):
        keep(x, y, foreign, resume=True)
    assert (foreign / "thesis.tex").read_text() == "years of work"
    description = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(ValueError, match="has format 99, this version of jaxmdn reads format 1"):
        keep(x, y, folder, resume=True)


def cut_short(folder):
    """Cut every file of the array store to ten bytes."""
    for path in folder.rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])


@contextlib.contextmanager
def full_disk():
    """No file can grow: what a full disk does, for this process alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# What orbax's threads leave behind when they cannot write.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_damaged_runs(tmp_path, monkeypatch):
    """A file that is cut short is named with the remedy, which works; a full disk harms nothing."""
    x, y = linear_data()
    folder, outcome = tmp_path / "run", keep(x, y, None, num_epochs=5)
    keep(x, y, folder, num_epochs=3)
    copy = shutil.copytree(folder, tmp_path / "copy")
    cut_short(folder / "search" / "3")
    with pytest.raises(
        ValueError, match=r"cut short or changed.* Delete .*3 to go on from epoch 2"
    ):
        keep(x, y, folder, num_epochs=5, resume=True)
    shutil.rmtree(folder / "search" / "3")
    same(keep(x, y, folder, num_epochs=5, resume=True), outcome)
    with full_disk(), pytest.raises(OSError, match=r"fit: .*search cannot be written: .*too large"):
        keep(x, y, copy, num_epochs=5, resume=True)
    with monkeypatch.context() as patch:  # a read-only folder, which root can write
        patch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(OSError, match=r"fit: .*search cannot be written: Permission denied"):
            keep(x, y, copy, num_epochs=5, resume=True)
    same(keep(x, y, copy, num_epochs=5, resume=True), outcome)
    with monkeypatch.context() as patch:  # which a run that is over only reads
        patch.setattr(os, "access", lambda path, mode: False)
        same(keep(x, y, copy, num_epochs=5, resume=True), outcome)
    (copy / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"fit: .* cannot be read"):
        keep(x, y, copy, resume=True)
    with pytest.raises(OSError, match=r"fit: .* cannot be written"):
        keep(x, y, "/sys/run")
    # Killed before the first file had its name.
    shutil.rmtree(copy)
    copy.mkdir()
    (copy / ".run.json.new").write_text("{")
    keep(x, y, copy, num_epochs=1, resume=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_damaged_networks(tmp_path, monkeypatch):
    x, y = linear_data()
    result = quick_fit(small_model(), x, y, num_epochs=1)
    folder = checkpoint.save(tmp_path / "model", result, notes={"version": 1})
    with full_disk(), pytest.raises(OSError, match=r"save: .*model cannot be written: .*too large"):
        checkpoint.save(folder, result, overwrite=True)
    with pytest.raises(OSError, match=r"save: .* cannot be written"):
        checkpoint.save("/sys/model", result)
    assert checkpoint.load_notes(folder) == {"version": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    # Killed between the two renames: the old one is found, and replaced by the next save.
    def killed(self, target):
        if Path(target).name == "model":
            raise KeyboardInterrupt
        return os.replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(folder, result, notes={"version": 2}, overwrite=True)
    assert not folder.exists()
    assert checkpoint.load_notes(folder) == {"version": 1}
    np.testing.assert_array_equal(checkpoint.load(folder).log_prob(x, y), result.log_prob(x, y))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        checkpoint.save(folder, result)
    checkpoint.save(folder, result, notes={"version": 3}, overwrite=True)
    assert checkpoint.load_notes(folder) == {"version": 3}
    assert folders.find(folder) == folder
    cut_short(folder)
    with pytest.raises(ValueError, match=r"load: .* cut short or changed"):
        checkpoint.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"load: .* cut short or changed"):
        checkpoint.load(folder)


@pytest.mark.nightly
@pytest.mark.parametrize("kills", [pytest.param(1, marks=pytest.mark.optimised), 50])
def test_killed_at_any_moment(tmp_path, monkeypatch, kills):
    """SIGKILL at random moments, the last epoch's included: the result is the same as ever."""
    monkeypatch.delenv("JAXMDN_CHECK_TYPES")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed"])

    def start(folder, outcome=None):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=killed.main, args=(tmp_path / folder, theirs, outcome))
        process.start()
        theirs.close()
        return process, ours

    def told(pipe):
        epochs = []
        with contextlib.suppress(EOFError):
            while True:
                epochs.append(pipe.recv())
        pipe.close()
        return epochs

    process, pipe = start("whole", tmp_path / "whole.npz")
    assert told(pipe) == list(range(1, killed.EPOCHS + 1))
    process.join()
    expected = np.load(tmp_path / "whole.npz")
    rng, done, lost, over = np.random.default_rng(0), 0, 0, 0
    for _ in range(kills):
        process, pipe = start(f"run {over}")
        pipe.poll(60)  # until it has compiled, and its first epoch is over
        time.sleep(rng.exponential(0.15))
        process.kill()
        process.join()
        epochs = told(pipe)
        assert epochs == list(range(min(epochs), min(epochs) + len(epochs)))
        assert min(epochs) <= done + 1, "no epoch is skipped"
        lost, done = max(lost, done + 1 - min(epochs)), max(epochs)
        if done == killed.EPOCHS:
            over, done = over + 1, 0
    assert lost <= 6, "three epochs between saves, and those that ran while the last was written"
    for number in range(over + 1):
        process, pipe = start(f"run {number}", tmp_path / "last.npz")
        told(pipe)
        process.join()
        found = np.load(tmp_path / "last.npz")
        for name in expected.files:
            np.testing.assert_array_equal(found[name], expected[name])
    print(f"{kills} kills, {over + 1} runs, at most {lost} epochs lost")
