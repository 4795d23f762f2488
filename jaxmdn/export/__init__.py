"""Trained densities as files that travel: to a server, another language, a year from now.

| format | what is written | what reads it |
|---|---|---|
| ``"jax"`` | a program of JAX (StableHLO), any number of rows | JAX alone, no Flax, no jaxmdn |
| ``"numpy"`` | safetensors, JSON, and a reader of one file | NumPy alone: the format to archive |
| ``"onnx"`` | an ONNX graph (normal heads) | any ONNX runtime |

Each is a folder with a ``description.json``. To go on training, or for everything that a density
can be asked, save with :mod:`jaxmdn.train.checkpoint`.
"""

from jaxmdn.export import archive
from jaxmdn.export.folder import FORMATS, OUTPUTS, save

__all__ = ["FORMATS", "OUTPUTS", "archive", "save"]
