"""Tests of the benchmark that compiles for TPUs: parsing of a program's text, without the compiler."""

from typing import Any

from bench import hlo, tpu_compile
from bench.hlo import Collective
from jaxtempl.planning.compiled_step import CompiledProgram
from jaxtempl.specs.accelerators import ACCELERATORS

# The compiler's format: layouts have brackets, an asynchronous collective appears in each computation that it is
# fused into, and a collective that the compiler adds has no name in the source.
PROGRAM = """HloModule jit_gradient

%gather.1 (p.1: bf16[1,8,4]) -> bf16[1,8,32] {
  ROOT %all-gather.1 = bf16[1,8,32]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%p.1), channel_id=4, metadata={op_name="w"}
}

%gather.2 (p.2: bf16[1,8,4]) -> bf16[1,8,32] {
  ROOT %all-gather.2 = bf16[1,8,32]{2,1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=4, metadata={op_name="w"}
}

%layer (p.3: (f32[8], f32[2,4])) -> (f32[8], f32[2,4]) {
  %a = bf16[1,8,32]{2,1,0} fusion(%p), kind=kCustom, calls=%gather.1
  %b = bf16[1,8,32]{2,1,0} fusion(%p), kind=kCustom, calls=%gather.2
  %splash_mha_fwd_residuals.6 = (f32[512,128]{1,0:T(8,128)}, bf16[8,64]{1,0}) custom-call(%a), custom_call_target="x"
  %all-reduce.7 = (f32[8]{0:T(1024)S(1)}, /*index=1*/f32[2,4]{1,0:T(8,128)}) all-reduce(%x, %y), channel_id=1
  %permute = (f32[2,4]{1,0}, f32[2,4]{1,0}, u32[], u32[]) collective-permute-start(%z), channel_id=2
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (f32[8], f32[2,4]) while(%t), condition=%c, body=%layer
  %reduce_scatter.1 = f32[4]{0:T(128)} reduce-scatter(%g), channel_id=1, dimensions={0}, metadata={op_name="r"}
  %reduce_scatter.2 = f32[4]{0:T(128)} reduce-scatter(%h), channel_id=1, dimensions={0}, metadata={op_name="r"}
}
"""


def test_each_collective_is_counted_once() -> None:
    scattered = Collective("reduce-scatter", (("f32", (4,)),), False)
    assert hlo.collectives(PROGRAM) == [
        Collective("all-gather", (("bf16", (1, 8, 32)),), True),
        Collective("all-reduce", (("f32", (8,)), ("f32", (2, 4))), True),
        Collective("collective-permute", (("f32", (2, 4)),), True),
        scattered,
        scattered,
    ]


def test_kernels_are_counted_by_name() -> None:
    assert tpu_compile.splash(PROGRAM) == {"splash_mha_fwd_residuals": 1}


def test_the_peak_is_the_state_and_the_larger_of_gradient_and_update() -> None:
    gradient, update = CompiledProgram("", arguments=5, outputs=4, temporary=20), CompiledProgram("", 20, 15, 7)
    assert tpu_compile.peak_bytes(16, gradient, update) == 16 + 4 + 20
    assert tpu_compile.peak_bytes(16, gradient, update._replace(temporary=90)) == 16 + 90


def row(case: tpu_compile.Case, held: float) -> dict[str, Any]:
    gradient = tpu_compile._memory(CompiledProgram(PROGRAM, arguments=5, outputs=4, temporary=20))
    return {
        **case._asdict(),
        "devices": 8,
        "state_bytes": 1_500_000_000,
        "gradient": gradient,
        "update": gradient,
        "splash": {"splash_mha_fwd_residuals": 2},
        "held_bytes": held,
        "fits": held < ACCELERATORS[case.chip].memory,
        "seconds": 60,
    }


def test_the_page_states_which_cases_fit_and_which_are_not_compiled() -> None:
    machine = {"processor": "x", "cores": 2, "memory_gb": 1.0, "system": "s", "python": "3", "versions": {}}
    first, second, *rest = tpu_compile.CASES
    rows = [row(first, 17e9), row(second, 17e9)]
    page = tpu_compile.page({"machine": {**machine, "load_before": 0.0}, "cases": rows})
    rows = [line for line in page.splitlines() if line.startswith("| 410m")]
    assert ["| 16 | no | fwd_residuals 2 |" in rows[0], "| 95 | yes |" in rows[1]] == [True, True]
    assert f"Not compiled yet: {'; '.join(map(str, rest))}." in page
    assert "Not compiled" not in tpu_compile.page(
        {"machine": {**machine, "load_before": 0.0}, "cases": [row(case, 1e9) for case in tpu_compile.CASES]}
    )
