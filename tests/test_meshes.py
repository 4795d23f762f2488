"""Every public function over a mesh of eight devices: explicit, automatic and manual axes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ALL = ("explicit types", "manual types")
CALLS = "nll,nll by blocks,linear_nll,quantile,sample,cdf,energy_score,entropy_bounds,crps"


def ask(heads, questions, modes):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    environment.pop("JAXMDN_CHECK_TYPES", None)
    command = [sys.executable, TESTS / "on_meshes.py", heads, questions, ",".join(modes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    *failures, last = done.stdout.strip().split("\n")
    assert not any(failures), done.stdout[-4000:]
    assert last.endswith("failed 0"), done.stdout[-4000:]
    return int(last.split()[1].rstrip(","))


@pytest.mark.version
def test_what_is_asked_most_is_accepted():
    assert ask("full", CALLS, ALL) == 2 * 9


@pytest.mark.version
def test_answers_are_those_of_one_device():
    assert ask("low-rank", "nll,quantile,cdf", ("explicit", "manual")) == 6


@pytest.mark.nightly
@pytest.mark.version
def test_everything_is_accepted_and_training_too():
    assert ask("", "", ALL) > 2000


@pytest.mark.nightly
def test_all_answers_are_those_of_one_device():
    assert ask("full,mixed,von_mises,hurdle", "", ("explicit", "automatic", "manual")) > 400
