"""``save``: one call, three formats, all of a folder or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmdn import __version__, checks
from jaxmdn.export import archive, onnx_graph, program
from jaxmdn.export.program import OUTPUTS
from jaxmdn.train import Columns, EnsembleResult, FitResult, folders

FORMATS: dict[str, Any] = {
    "jax": program.write,
    "numpy": archive.write,
    "onnx": onnx_graph.write,
}


def save(
    path: str | os.PathLike[str],
    result: FitResult | EnsembleResult,
    *,
    outputs: Sequence[str] = ("parameters", "mean", "quantiles"),
    quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
    columns: Columns | None = None,
    format: str = "jax",
    overwrite: bool = False,
) -> Path:
    """Write a trained density as a folder that needs no jaxmdn to be read.

    Inputs go in as a float32 table ``[N, F]``, as in ``fit``; densities come out in the target's
    unit: the standardisers are inside, and an ensemble's calibration and filling of gaps. Of a
    category ``"jax"`` and ``"onnx"`` take its place among ``columns.categories`` of
    ``description.json``, -1 for any other (:meth:`jaxmdn.train.Columns.codes`), the reader of
    ``"numpy"`` the category itself.

    Args:
      path: the folder.
      result: what ``fit`` or ``fit_ensemble`` returned, of inputs that are one table.
      outputs: of ``"jax"`` and ``"onnx"``: ``"parameters"`` (``weights [N, K]``, and those of the
        components, such as ``components.loc [N, K, D]``), ``"mean"`` and ``"std"`` ``[N, D]``,
        ``"quantiles"`` ``[Q, N, D]`` and ``"cdf"`` ``[N, D]`` (not ``"onnx"``), ``"log_prob"``
        ``[N]``; with ``"log_prob"`` or ``"cdf"`` the program takes targets ``[N, D]``, too. The
        reader of ``"numpy"`` always gives all.
      quantiles: their levels ``[Q]``.
      columns: what a single network's rows were prepared with, so that the table goes in as it was
        before; an ensemble has its own.
      format: ``"jax"``, ``"numpy"`` or ``"onnx"``.
      overwrite: replace a folder that an earlier call wrote.

    Returns:
      The folder.

    ``"jax"``: ``program.jax`` holds what ``jax.export`` serialised, for the CPU and CUDA and any
    number of rows N. To run it takes JAX alone (and ``flatbuffers``, which also writing needs)::

        import jax, pathlib
        program = jax.export.deserialize(bytearray(pathlib.Path("folder/program.jax").read_bytes()))
        answers = program.call(x)  # a dictionary

    JAX promises to run it for six months after the version that wrote it, and that an older JAX, of
    three weeks at most, does too; export again within that time, or archive with ``"numpy"``.

    ``"numpy"``: ``arrays.safetensors``, ``description.json`` and ``reader.py``, one file that needs
    NumPy alone; see :mod:`jaxmdn.export.archive` for the format, and what it holds.

    ``"onnx"``: ``model.onnx``; a single network with a normal head of diagonal or isotropic
    covariance. Needs the package ``onnx`` to write.

    Raises:
      FileExistsError: for a folder that exists. ValueError: for a result that the format cannot
        hold, saying why and what does.

    >>> import tempfile, jax.numpy as jnp, jaxmdn
    >>> from flax import nnx
    >>> x = jnp.linspace(-1, 1, 64)[:, None]
    >>> model = jaxmdn.nn.MDN(1, jaxmdn.NormalHead(1, 1), hidden_features=(8,), rngs=nnx.Rngs(0))
    >>> result = jaxmdn.train.fit(model, x, 3.0 * x, num_epochs=2, progress=False)
    >>> folder = jaxmdn.export.save(tempfile.mkdtemp() + "/mine", result, format="numpy")
    >>> sorted(path.name for path in folder.iterdir())
    ['arrays.safetensors', 'description.json', 'reader.py']
    """
    checks.require_option("export.save", "format", format, FORMATS)
    for output in outputs:
        checks.require_option("export.save", "outputs", output, OUTPUTS)
    levels = np.asarray(quantiles, np.float64)
    if levels.ndim != 1 or not ((levels > 0) & (levels < 1)).all():
        raise ValueError(
            f"export.save: quantiles must be a list of levels in (0, 1), got {levels.tolist()}."
        )
    folder = Path(path).expanduser()
    ours = (folder / "description.json").is_file()
    if folder.exists() and not (overwrite and ours):
        remedy = "pass overwrite=True" if ours else "it is no export, so it stays"
        raise FileExistsError(f"export.save: {folder} exists; choose another folder, or {remedy}.")
    with folders.replacing(folder) as scratch:
        found = FORMATS[format](scratch, result, tuple(outputs), tuple(levels.tolist()), columns)
        head = {"format": format, "version": 1, "jaxmdn": __version__}
        text = json.dumps({**head, **found}, indent=1, allow_nan=False)
        (scratch / "description.json").write_text(text)
    return folder
