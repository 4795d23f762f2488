"""Launches and their bytes, read from compiled programs."""

from benchmarks import launches
from benchmarks.cases import Case

PROGRAM = """\
%fused (p.0: f32[8,6], p.1: f32[8]) -> f32[8,2] {
  %p.0 = f32[8,6]{1,0} parameter(0)
  %p.1 = f32[8]{0} parameter(1)
  %whole = f32[8,6]{1,0} bitcast(%p.0)
  %left = f32[8,2]{1,0} slice(%whole), slice={[0:8], [0:2]}
  %right = f32[8,2]{1,0} slice(%whole), slice={[0:8], [4:6]}
  %row = f32[8,2]{1,0} broadcast(%p.1), dimensions={0}
  %sum = f32[8,2]{1,0} add(%left, %right)
  ROOT %out = f32[8,2]{1,0} add(%sum, %row)
}

ENTRY %main (raw: f32[8,6], y: f32[8]) -> (bf16[8], f32[8,2]) {
  %raw = f32[8,6]{1,0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %call = (bf16[8]{0}, f32[8,6]{1,0}) custom-call(%raw, %y), custom_call_target="kernel"
  %first = bf16[8]{0} get-tuple-element(%call), index=0
  %second = f32[8,6]{1,0} get-tuple-element(%call), index=1
  %half = f32[8,2]{1,0} fusion(%second, %y), kind=kLoop, calls=%fused
  ROOT %tuple = (bf16[8]{0}, f32[8,2]{1,0}) tuple(%first, %half)
}
"""


def test_slices_count_instead_of_what_they_are_cut_from():
    raw, y = 4 * 8 * 6, 4 * 8
    assert launches.launches(PROGRAM) == [
        ("call", raw + y, 2 * 8 + raw),
        ("half", 2 * 4 * 8 * 2 + y, 4 * 8 * 2),
    ]


def test_everyone_takes_the_same_arguments():
    case = Case(operation="linear_nll_gradient", rows=8, components=2, dim=1, hidden=4)
    found = launches.functions(case)
    assert list(found) == ["xla", "xla_chunked", "pallas_triton", "plain JAX"]
    for _, shapes in found.values():
        assert [shape.shape for shape in shapes] == [(8, 4), (4, 6), (6,), (8, 1)]
