"""A training run on disk, so that it can go on after its process was killed.

    folder/run.json          version, and what the run was started with
    folder/search/<epoch>/   orbax: state (arrays), host (JSON)
    folder/refit/<epoch>/    the same of the second run, of ``refit=True``

A save takes the time of copying the state; orbax writes it in the background and gives it its name
when it is complete. The last two are kept. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from jaxmdn import __version__, checks
from jaxmdn.train import folders
from jaxmdn.train.data import Rows
from jaxmdn.train.loop import Progress
from jaxmdn.train.program import Carry
from jaxmdn.train.spread import Layout

FORMAT = 1
SECONDS = 60  # between saves, unless a number of epochs is given
QUIET, PATIENCE = 0.3, 10.0  # seconds without a change, and at most, after a save that failed
SAVED = ("epoch", "step_size", "calm", "data", "finer", "since", "path", "best")  # of Progress


@dataclasses.dataclass(frozen=True)
class Store:
    """The folder of a run, checked: new, or of a run that was started in the same way.

    Attributes:
      function: the caller's name, for messages.
      folder: where.
      save_every: epochs between saves; None: at least a minute between them.
    """

    function: str
    folder: Path
    save_every: int | None

    @classmethod
    def open(
        cls,
        layout: Layout,
        folder: Any,
        save_every: int | None,
        resume: bool,
        settings: dict[str, Any],
    ) -> Store:
        """Start a folder, or find the run in it.

        Args:
          layout: of the run, with the caller's name.
          folder: where.
          save_every: see the class.
          resume: whether a run that is there is meant to go on.
          settings: what must be the same; JSON.

        Raises:
          FileExistsError: if something is there, and ``resume`` is False or it is no run.
          ValueError: if it was started otherwise, or by a newer version, and for a run of some of
            several processes.
          OSError: if the folder cannot be written.
        """
        function, others = layout.function, jax.process_count() - layout.num_processes
        if others:
            raise ValueError(
                f"{function}: checkpoint= is for a mesh of the devices of all processes, {others} "
                f"have none in it; pass mesh=jax.make_mesh((jax.device_count(),), ('data',)), or "
                f"train in processes that do not call jax.distributed.initialize."
            )
        folder = Path(folder).expanduser().absolute()
        settings = json.loads(json.dumps(settings))  # tuples become lists
        path = folder / "run.json"
        if save_every is not None:
            checks.require_count(function, "save_every", save_every)
        new, free = not path.is_file(), folders.is_free(folder, path)
        if jax.process_count() > 1:  # all of them look before the first writes
            multihost_utils.sync_global_devices("jaxmdn.train.resume.Store.open")
        if new:
            if not free:
                raise FileExistsError(
                    f"{function}: {folder} holds something else than a training run; choose "
                    f"another folder for checkpoint=."
                )
            content = {"format": FORMAT, "jaxmdn": __version__, "settings": settings}
            text = json.dumps(content, indent=1)
            with folders.writing(function, folder):
                folder.mkdir(parents=True, exist_ok=True)
                if jax.process_index() == 0:
                    folders.write_text(path, text)
            return cls(function, folder, save_every)
        if not resume:
            raise FileExistsError(
                f"{function}: {folder} holds a training run; pass resume=True to go on with it, or "
                f"choose another folder for checkpoint=."
            )
        with folders.reading(function, folder, "Choose another folder to start again."):
            found = json.loads(path.read_text())
            version = found["format"]
        if version not in range(1, FORMAT + 1):
            raise ValueError(
                f"{function}: {folder} has format {version!r}, this version of jaxmdn reads format "
                f"{FORMAT}; go on with jaxmdn {found.get('jaxmdn')}."
            )
        for name, value in settings.items():
            before = found["settings"].get(name)
            if before != value:
                raise ValueError(
                    f"{function}: the run in {folder} was started with {name} {before!r}, now it "
                    f"is {value!r}; pass the same, or choose another folder for checkpoint=."
                )
        return cls(function, folder, save_every)


class Keeper:
    """Saves a loop's carry and progress every few epochs, and finds the last that is complete."""

    def __init__(self, store: Store, name: str) -> None:
        self.function, self.folder = store.function, store.folder / name
        decision: Any = policies.ContinuousCheckpointingPolicy(minimum_interval_secs=SECONDS)
        if store.save_every is not None:
            decision = policies.FixedIntervalPolicy(store.save_every)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.LatestN(2),
            save_decision_policy=decision,
            cleanup_tmp_directories=True,
        )
        with folders.writing(self.function, self.folder):
            self.manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is not None:  # its own failure would hide the error
            with contextlib.suppress(Exception):
                self.manager.close()
            _settle(self.folder)
            return
        with folders.writing(self.function, self.folder):
            self.manager.close()

    def save(self, carry: Carry, progress: Progress, *, last: bool = False) -> None:
        """Save if it is time to, or if it is the ``last`` and not saved yet."""
        epoch = progress.epoch
        due = epoch != self.manager.latest_step() if last else self.manager.should_save(epoch)
        if not due:
            return
        arrays = _copy(carry)  # the next epoch takes the buffers of the carry
        # Copied, too: what is written in the background must not grow with the next epoch.
        host = {name: copy.deepcopy(getattr(progress, name)) for name in SAVED}
        host["history"] = {name: jsonable(values) for name, values in progress.history.items()}
        host["shapes"] = _shapes(arrays)
        with folders.writing(self.function, self.folder):
            if not os.access(self.folder, os.W_OK):  # orbax would wait for minutes
                raise PermissionError("Permission denied")
            self.manager.save(
                epoch,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_named(arrays)), host=ocp.args.JsonSave(host)
                ),
                force=last,
            )
            if last:
                self.manager.wait_until_finished()

    def restore(self, carry: Carry, progress: Progress) -> Carry:
        """The last carry that was saved (else the one given), and its ``progress``, in place.

        Args:
          carry: a fresh one, for its structure and for where its arrays live.
          progress: a fresh one.

        Raises:
          ValueError: if it is damaged, or of another model or optimizer.
        """
        steps = sorted(self.manager.all_steps())
        if not steps:
            return carry
        place = self.folder / str(steps[-1])
        others = f"go on from epoch {steps[-2]}" if len(steps) > 1 else "start again"
        remedy = f"Delete {place} to {others}."
        with folders.reading(self.function, place, remedy):
            host = self.manager.restore(
                steps[-1], args=ocp.args.Composite(host=ocp.args.JsonRestore())
            ).host
        fresh = _copy(carry)
        if host.pop("shapes") != _shapes(fresh):
            raise ValueError(
                f"{self.function}: the run in {self.folder.parent} has other parameters or another "
                f"optimizer; pass a model and an optimizer that are built in the same way."
            )
        like = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), _named(fresh)
        )
        with folders.reading(self.function, place, remedy):
            found = self.manager.restore(
                steps[-1], args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
            ).state
        host["history"] = {
            name: list(np.array(values, float)) for name, values in host["history"].items()
        }
        for name, value in host.items():
            setattr(progress, name, value)
        leaves, structure = jax.tree.flatten(carry)
        new = [
            jax.random.wrap_key_data(found[name], impl=jax.random.key_impl(leaf))
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else found[name]
            for name, leaf in zip(_names(carry), leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, new)


def _settle(folder: Path) -> None:
    """Wait for what a save that failed still writes: another run may begin in the folder at once.

    Orbax raises the first error of several threads; the others go on for a while.
    """
    before: Any = None
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(OSError):  # it goes while it is looked at
            now = [(path, path.lstat().st_mtime_ns) for path in folder.glob("*-tmp/**/*")]
            if now == before or not now:
                return
            before = now
        time.sleep(QUIET)


def fingerprint(rows: Rows | None) -> dict[str, Any] | None:
    """How many rows, and a checksum of all of them."""
    if rows is None:
        return None
    total = 0
    for leaf in jax.tree.leaves(rows):
        total = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, total)
    return {"count": rows.size, "crc32": total}


def jsonable(values: Any) -> list[Any]:
    """Nested lists, with None for what is not finite: strict JSON knows no NaN."""
    values = np.asarray(values, float)
    return np.where(np.isfinite(values), values, np.array(None)).tolist()


@jax.jit
def _copy(tree: Any) -> Any:
    """A copy with random keys as plain numbers."""

    def one(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key_data(leaf)
        return jnp.copy(leaf)

    return jax.tree.map(one, tree)


def _names(tree: Any) -> list[str]:
    """A name for each leaf, of its number and its path."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return [f"{i:05d}{jax.tree_util.keystr(path)}" for i, path in enumerate(paths)]


def _named(tree: Any) -> dict[str, Any]:
    return dict(zip(_names(tree), jax.tree.leaves(tree), strict=True))


def _shapes(tree: Any) -> dict[str, Any]:
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in _named(tree).items()}
