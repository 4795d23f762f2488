"""qp both ways: a catalogue's densities as an ensemble that surveys read and write."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmdn.components import Normal
from jaxmdn.components.base import Density
from jaxmdn.mixture import Mixture


def to_qp(density: Density) -> Any:
    """Return the ``qp.Ensemble`` of mixtures of normals (``qp.mixmod``), one for each row.

    Args:
      density: a mixture of normals in one dimension, of batch shape ``[N]``. For others (Student-t
        components, say, as those of ``fit_ensemble``) hand qp their values on a grid:
        ``qp.Ensemble(qp.interp, data={"xvals": grid, "yvals": ...})``, or train
        ``fit_ensemble(x, y, jaxmdn.NormalHead(5, 1))``.

    Raises:
      ImportError: without qp.
      TypeError: for anything but a mixture of normals in one dimension.

    >>> import jax.numpy as jnp, jaxmdn
    >>> mixture = jaxmdn.NormalHead(2, 1)(jnp.zeros((3, 6)))
    >>> jaxmdn.interop.to_qp(mixture).npdf  # doctest: +SKIP
    3

    References:
      Malz et al. (2018), Approximating photo-z PDFs for large surveys, section 3.
    """
    if (
        not isinstance(density, Mixture)
        or not isinstance(density.components, Normal)
        or density.event_dim != 1
        or len(density.batch_shape) != 1
    ):
        raise TypeError(
            f"to_qp: expected a mixture of normals with D = 1 and batch shape [N], got "
            f"{type(getattr(density, 'components', density)).__name__} with D = "
            f"{density.event_dim} and batch shape {list(density.batch_shape)}."
        )
    try:
        import qp
    except ImportError as error:
        raise ImportError(
            "to_qp: qp is not installed; install it with: pip install qp-prob."
        ) from error
    shape = (*density.batch_shape, density.num_components)
    parts = {
        "weights": jnp.exp(density.log_weights()),
        "means": density.components.loc[..., 0],
        "stds": density.components.scale[..., 0],
    }
    wide = {name: np.array(jnp.broadcast_to(part, shape), float) for name, part in parts.items()}
    return qp.Ensemble(qp.mixmod, data=wide)


def from_qp(ensemble: Any) -> Mixture:
    """Return a ``qp.Ensemble`` of mixtures of normals as a mixture of batch shape ``[N]``.

    Raises:
      TypeError: for an ensemble in another parameterisation; ``ensemble.convert_to(qp.mixmod)``
        makes it one.
    """
    parts = getattr(ensemble, "objdata", None)
    if not isinstance(parts, dict) or not {"weights", "means", "stds"} <= parts.keys():
        raise TypeError(
            f"from_qp: expected a qp.Ensemble of qp.mixmod, got {type(ensemble).__name__}; "
            f"ensemble.convert_to(qp.mixmod) makes it one."
        )
    dtype = jnp.result_type(float)
    weights, means, stds = (jnp.asarray(parts[key], dtype) for key in ("weights", "means", "stds"))
    normal = Normal(loc=means[..., None], scale=stds[..., None])
    return Mixture(logits=jnp.log(weights), components=normal)
