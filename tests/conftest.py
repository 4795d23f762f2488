"""Every test runs with its shapes checked, under strict dtype promotion and with x64 enabled.

Nearly all the time goes into compiling programs that run once, so that the compiler is told not to
optimise them; ``JAXMDN_TEST_OPTIMIZED=1`` lets it, as it does for users.
"""

import os

os.environ["JAXMDN_CHECK_TYPES"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")
if not os.environ.get("JAXMDN_TEST_OPTIMIZED"):
    flags = ("--xla_backend_optimization_level=0", os.environ.get("XLA_FLAGS", ""))
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()

import jaxtyping
import pytest

jaxtyping.install_import_hook("jaxmdn", "beartype.beartype")

import jax  # noqa: E402 (the import hook comes first)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_collection_modifyitems(items):
    """Files share compiled programs, so that each runs in one process; notebooks do not, and begin.

    They take longest: at the end one process would wait for them.
    """
    for item in items:
        group = item.nodeid if item.path.stem == "test_notebooks" else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path.stem != "test_notebooks")


@pytest.fixture
def user_errors():
    """Switch the shape checker off, so that a test sees the message a user would see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def as_users_run():
    """JAX's own defaults: Flax and Optax are not written for strict dtype promotion."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Every program maps memory; Linux allows 65,530 maps, and a whole run needs more."""
    yield
    jax.clear_caches()
