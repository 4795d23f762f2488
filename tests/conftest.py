"""Every test runs with shapes checked, strict dtype promotion and, unless it says otherwise, x64."""

import os

os.environ["JAXMDN_CHECK_TYPES"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

from jaxtyping import install_import_hook

install_import_hook("jaxmdn", "beartype.beartype")

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
