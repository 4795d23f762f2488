"""Trained networks on disk: a folder with a JSON description and an orbax array store.

    folder/config.json      version, network, head, standardisers, training history, your notes
    folder/arrays/          parameters (orbax)

No pickles: loading runs no code from the folder, and works on another device count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils

from jaxmdn import __version__
from jaxmdn.calibration.temperature import Temperature
from jaxmdn.nn import MDN, AutoregressiveMDN
from jaxmdn.train import Columns, EnsembleResult, FitResult, folders
from jaxmdn.train.linear import Linear
from jaxmdn.train.resume import jsonable
from jaxmdn.train.standardize import Standardizer, from_config

# Of what `save` writes: 2 since inputs may be pytrees and networks have a dtype, 3 since a single
# network has a temperature, 4 since an ensemble may have a linear model. All are read.
FORMAT = 4
# Networks that can be built again from their description.
NETWORKS: dict[str, Any] = {"MDN": MDN, "AutoregressiveMDN": AutoregressiveMDN}
REMEDY = "Load a copy of the folder, or train again."


def save(
    folder: str | os.PathLike[str],
    result: FitResult | EnsembleResult,
    *,
    notes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a trained network to a folder, all of it or nothing.

    Args:
      folder: where; must not exist unless ``overwrite``.
      result: what ``fit`` or ``fit_ensemble`` returned. A model with a custom trunk is saved too,
        but :func:`load` then needs a freshly built one. Of several processes the first writes; all
        must call this where parameters are spread over their devices, and may elsewhere.
      notes: anything JSON can hold, given back by :func:`load_notes`.
      overwrite: replace an existing folder.

    Returns:
      The folder's path.

    Raises:
      FileExistsError: if the folder exists and ``overwrite`` is False.
      OSError: if it cannot be written; what was there before is intact, at whatever moment the
        process is killed, too.
    """
    folder = Path(folder).expanduser()
    before = folders.find(folder)
    if before.exists() and overwrite and not (before / "config.json").is_file():
        raise FileExistsError(
            f"save: {folder} is no saved network, so overwrite=True will not replace it; choose "
            f"another folder."
        )
    if before.exists() and not overwrite:
        raise FileExistsError(
            f"save: {folder} exists already; choose another folder or pass overwrite=True."
        )
    model = result.model
    network = next((name for name, kind in NETWORKS.items() if isinstance(model, kind)), None)
    config = {
        "format": FORMAT,
        "jaxmdn": __version__,
        "network": network,
        "model": model.config() if network and model.describable else None,
        "history": {name: jsonable(values) for name, values in result.history.items()},
        "notes": dict(notes or {}),
    }
    arrays: dict[str, Any]
    if isinstance(result, EnsembleResult):
        arrays = {
            "model": _arrays(result.networks),
            "temperature": dict(vars(result.temperature)),
            "floor": result.floor,
        }
        if result.linear is not None:
            arrays["linear"] = dict(vars(result.linear))
        config["folds"] = result.folds.tolist()
        config["columns"] = result.columns.to_config()
        config["narrowing"] = result.narrowing
    else:
        arrays = {"model": _arrays(nnx.state(model))}
        config["best_epoch"], config["temperature"] = result.best_epoch, result.temperature
    config["cells"] = None if result.cells is None else result.cells.tolist()
    maps = {"x": result.x_standardizer, "y": result.y_standardizer}
    config["standardizers"] = {name: part and part.to_config() for name, part in maps.items()}
    config["shapes"] = jax.tree.map(lambda a: [list(a.shape), str(a.dtype)], arrays)
    text = json.dumps(config, indent=1, allow_nan=False)
    arrays = jax.tree.map(_of_all_processes, arrays)
    if jax.process_index() > 0:
        return folder
    with folders.writing("save", folder), folders.replacing(folder) as scratch:
        (scratch / "config.json").write_text(text)
        with _checkpointer() as checkpointer:
            checkpointer.save((scratch / "arrays").absolute(), arrays)
    return folder


def load(folder: str | os.PathLike[str], *, model: Any = None) -> FitResult | EnsembleResult:
    """Read what :func:`save` wrote.

    Args:
      folder: the saved folder.
      model: a freshly built network of the same shape, needed only where the saved one had a
        custom trunk; its parameters are overwritten.

    Returns:
      What was saved, ready to predict; without its component report, or ``out_of_fold`` densities.

    Raises:
      FileNotFoundError, ValueError: if the folder is no saved network, comes from a newer format,
        or does not fit the model passed in.
    """
    folder = folders.find(Path(folder).expanduser())
    config = _read_config(folder)
    if model is None:
        if config["model"] is None:
            raise ValueError(
                f"load: the network in {folder} has a custom trunk; pass a freshly built one of "
                f"the same shape as model=."
            )
        network = NETWORKS[config.get("network", "MDN")]
        model = network.from_config(config["model"], rngs=nnx.Rngs(0))
    state, ensemble = nnx.state(model), "folds" in config
    stored = config["shapes"]["model"]
    lead = tuple(next(iter(stored.values()))[0][:2]) if ensemble else ()
    wanted = {
        name: [[*lead, *leaf.shape], str(leaf.dtype)] for name, leaf in _arrays(state).items()
    }
    if wanted != stored:
        raise ValueError(
            f"load: the network in {folder} has parameters {stored}, "
            f"but the model passed in has {wanted}; build it with the same arguments."
        )
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # wherever it was saved
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf[0], jnp.dtype(leaf[1]), sharding=here),
        config["shapes"],
        is_leaf=lambda node: isinstance(node, list),
    )
    with folders.reading("load", folder, REMEDY), _checkpointer() as checkpointer:
        arrays = checkpointer.restore((folder / "arrays").absolute(), target)
    found = nnx.from_flat_state(
        [(path, variable.replace(arrays["model"][_name(path)])) for path, variable in _flat(state)]
    )
    model.eval()
    maps = config["standardizers"]
    common: dict[str, Any] = {
        "x_standardizer": from_config(maps.get("x")),
        "y_standardizer": from_config(maps.get("y")),
        "history": {name: np.array(values, float) for name, values in config["history"].items()},
        "cells": None if config.get("cells") is None else np.array(config["cells"]),
    }
    if not ensemble:
        nnx.update(model, found)
        own = {"best_epoch": config["best_epoch"], "temperature": config.get("temperature", 1.0)}
        return FitResult(model=model, **common, **own, report=None)
    random = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (*lead, *leaf.shape)), nnx.state(model, nnx.RngState)
    )
    return EnsembleResult(
        **common,
        graphdef=nnx.graphdef(model),
        networks=nnx.merge_state(found, random),
        linear=Linear(**arrays["linear"]) if "linear" in arrays else None,
        folds=np.array(config["folds"]),
        temperature=Temperature(**arrays["temperature"]),
        narrowing=config.get("narrowing", 1.0),
        floor=arrays["floor"],
        columns=_columns(config, common["x_standardizer"]),
        out_of_fold=None,
    )


def _columns(config: dict[str, Any], x_map: Standardizer) -> Columns:
    """What becomes of the inputs; of an ensemble saved before there were gaps: nothing."""
    if "columns" in config:
        return Columns.from_config(config["columns"])
    return Columns.fit(np.zeros((1, len(x_map.shift))))


def load_notes(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the ``notes`` that were saved along."""
    return _read_config(folders.find(Path(folder).expanduser()))["notes"]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"load: {folder} is no saved network (config.json is missing); "
            f"jaxmdn.checkpoint.save writes one."
        )
    with folders.reading("load", folder, REMEDY):
        config = json.loads(path.read_text())
    if config.get("format") not in range(1, FORMAT + 1):
        raise ValueError(
            f"load: {folder} has format {config.get('format')!r}, this version of jaxmdn reads "
            f"formats 1 to {FORMAT}; load it with jaxmdn {config.get('jaxmdn')}."
        )
    return config


def _checkpointer() -> ocp.StandardCheckpointer:
    """Of this process by itself, whatever others there are."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _of_all_processes(leaf: Any) -> Any:
    """An array that one process can write."""
    if jax.process_count() == 1:
        return leaf
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _flat(state: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Paths and variables of everything in a network's state but its random streams."""
    kept = nnx.to_flat_state(nnx.filter_state(state, nnx.Not(nnx.RngState)))
    return list(kept)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path)


def _arrays(state: Any) -> dict[str, Any]:
    return {_name(path): variable[...] for path, variable in _flat(state)}
