"""What a step exchanges is read from its program, and carried over to GPUs on paper."""

import json

import pytest

from benchmarks import scaling

PROGRAM = """
  %a = (f32[3,4]{1,0}, f32[]) all-reduce(%x, %y), channel_id=1, replica_groups={{0,1}}
  ROOT %b = bf16[8]{0} all-reduce(%z), channel_id=2
"""


def test_bytes_are_those_of_all_sums():
    assert scaling.exchanged(PROGRAM) == 4 * 12 + 4 + 2 * 8
    with pytest.raises(AssertionError, match="only add up gradients"):
        scaling.exchanged("%a = f32[8,3]{1,0} all-gather(%x), dimensions={0}")


def test_on_paper():
    """A gigabyte: bandwidth alone counts; a byte: hops alone."""
    large, small = scaling.on_gpus(1e9), scaling.on_gpus(1.0)
    assert large["8"] == pytest.approx(2 * 7 / 8 / 450, rel=0.01)
    assert large["256"] == pytest.approx(large["8"] + 2 * 31 / 32 / 8 / 50, rel=0.02)
    assert small["8"] == pytest.approx(6 * 2e-6, rel=1e-3)
    assert small["256"] == pytest.approx(6 * 2e-6 + 10 * 5e-6, rel=1e-3)


def test_the_report_is_that_of_the_record():
    path = next(scaling.RESULTS.glob("*many-devices.json"))
    record = json.loads(path.read_text())
    assert scaling.report(record) == path.with_suffix(".md").read_text()
    for case in record["cases"]:
        more = case["exchanged_bytes"] - case["gradient_bytes"]
        assert more == (4 if case["devices"] > 1 else -case["gradient_bytes"])
