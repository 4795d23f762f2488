"""``import jaxmdn`` is cheap, loads JAX and NumPy alone, and knows its version."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

import jaxmdn

pytestmark = pytest.mark.version

OPTIONAL = (
    *("distrax", "flax", "jaxtyping", "matplotlib", "optax", "orbax"),
    *("pandas", "sklearn", "tqdm", "scipy", "tensorflow_probability"),
)
# Of what ``import jax`` takes beside it: a busy machine slows both. On an idle one that is 0.1 s of
# 0.5 s, and 0.05 s is what it takes.
LIMIT = 0.2
RUNS = 5

CODE = """
import json, sys, time
times = [time.process_time()]  # of this process alone: others may keep the machine busy
import jax
before = set(sys.modules)
times.append(time.process_time())
import jaxmdn
times.append(time.process_time())
loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print(json.dumps({"jax": times[1] - times[0], "jaxmdn": times[2] - times[1], "loaded": loaded}))
"""


def measure():
    environment = {k: v for k, v in os.environ.items() if k != "JAXMDN_CHECK_TYPES"}
    run = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


def test_import_is_cheap_and_loads_no_optional_package():
    shares = []
    while len(shares) < RUNS and min(shares, default=1.0) > LIMIT:  # an unlucky moment: try again
        result = measure()
        assert "jaxmdn" in result["loaded"]
        assert not set(result["loaded"]) & set(OPTIONAL)
        shares.append(result["jaxmdn"] / result["jax"])
    assert min(shares) <= LIMIT, f"import jaxmdn took {shares} of the time import jax takes"


def test_the_version_is_the_installed_one():
    assert jaxmdn.__version__ == importlib.metadata.version("jaxmdn")


def test_the_folder_of_a_clone_is_not_taken_for_the_package(tmp_path):
    """Python run beside a folder of that name, as in the parent of a clone."""
    (tmp_path / "jaxmdn").mkdir()
    code = "import jaxmdn; print(jaxmdn.__version__)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == jaxmdn.__version__, run.stderr
