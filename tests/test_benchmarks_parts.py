"""What the benchmarks compute beside measuring: operations by arithmetic, and where a trace's time belongs."""

import sys
import time
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

PROGRAM = """HloModule jit_step, is_scheduled=true

%fused_computation (a: f32[4], b: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %b = f32[4]{0} parameter(1)
  ROOT %c = f32[4]{0} convolution(%a, %b), dim_labels=b01f_01io->b01f
}

%fused_computation.1 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %t = f32[4]{0} transpose(%p), dimensions={0}
}

ENTRY %main (x: f32[4], w: f32[4], v: f32[4]) -> (f32[4], f32[4]) {
  %x = f32[4]{0} parameter(0), metadata={op_name="batch['inputs']"}
  %w = f32[4]{0} parameter(1), metadata={op_name="state.params"}
  %v = f32[4]{0} parameter(2), metadata={op_name="teacher.params"}
  %copy.1 = f32[4]{0} copy(%w)
  %conv.1 = f32[4]{0} fusion(%x, %v), calls=%fused_computation, metadata={op_name="jit(step)/teacher/CNN/conv"}
  %dot.2 = f32[4]{0} dot(%x, %copy.1), metadata={op_name="jit(step)/jvp(student)/CNN/dot_general"}
  %gemm.3 = (f32[4]{0}, /*index=5*/s8[64]{0}) custom-call(%x, %dot.2), custom_call_target="__cublas$gemm", \
metadata={op_name="jit(step)/transpose(jvp(student))/CNN/dot_general"}
  %exp.4 = f32[4]{0} exponential(%dot.2), metadata={op_name="jit(step)/transpose(jvp(loss))/exp"}
  %moved = f32[4]{0} fusion(%exp.4), calls=%fused_computation.1
  %kernel.5 = f32[4]{0} fusion(%moved, %x), calls=%fused_computation
  %add.6 = f32[4]{0} add(%kernel.5, %w), metadata={op_name="jit(step)/optimizer/add"}
  ROOT %out = (f32[4]{0}, f32[4]{0}) tuple(%add.6, %conv.1)
}
"""


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_operations_are_placed_by_the_programs_own_names():
    import _profile

    places = _profile.places(PROGRAM)
    assert places["conv.1"] == ("teacher forward", "convolution")
    assert places["dot.2"] == ("student forward", "matrix product")
    assert places["gemm.3"] == ("student backward", "matrix product")
    assert places["exp.4"] == ("loss", "other arithmetic")
    assert places["add.6"] == ("optimizer", "other arithmetic")
    assert places["copy.1"] == ("student forward", "copy")  # who reads it
    assert places["kernel.5"] == ("student backward", "convolution")  # the optimizer reads it, and has no convolutions
    assert places["moved"] == ("student backward", "copy")


@pytest.mark.parametrize(
    ("scope", "part"),
    [
        ("jit(step)/shard_map/jvp(student)/CNN/student/mul", "student forward"),
        ("jit(step)/transpose(jvp(student))/loss/mul", "student backward"),
        ("jit(step)/jvp(loss)/log", "loss"),
        ("jit(step)/vmap(teachers)/log", "other operations"),
        ("", "other operations"),
    ],
)
def test_the_outermost_scope_counts(scope, part):
    import _profile

    assert _profile.part_of(scope) == part


def test_operations_at_once_share_the_moment_and_all_sums_to_the_wall_time():
    from _profile import Span, breakdown, shares

    spans = [Span("a", 0, 10), Span("b_1", 4, 8), Span("c", 6, 8), Span("a", 20, 21), Span("d", 30, 30)]
    # 0–4 a; 4–6 a, b; 6–8 a, b, c; 8–10 a; 20–21 a.
    assert shares(spans) == pytest.approx({"a": 4 + 1 + 2 / 3 + 2 + 1, "b_1": 1 + 2 / 3, "c": 2 / 3})
    where = {"a": ("loss", "copy"), "b.1": ("optimizer", "other arithmetic")}
    result = breakdown(spans, where, 40.0)
    assert result["dispatch and host", "none running"] == pytest.approx(40 - 11)
    assert sum(result.values()) == pytest.approx(40)
    assert result["optimizer", "other arithmetic"] == pytest.approx(1 + 2 / 3)  # a kernel's name has no dots
    assert result["other operations", "other arithmetic"] == pytest.approx(2 / 3)  # c stands in no program


def test_the_step_names_its_parts():
    """The scopes that the profile reads are those of `kdjax.training`, in the program that XLA compiles."""
    import _cases
    import _profile
    from _work import random_batches

    from kdjax.models import CNN

    case = _cases.make(CNN(widths=(2,)), CNN(widths=(4, 3)), random_batches(2, 1))
    found = set(_profile.places(case.compiled().as_text()).values())
    assert {part for part, _ in found} >= set(_profile.PARTS[:5])
    assert ("teacher forward", "convolution") in found
    assert ("optimizer", "convolution") not in found


def test_operations_by_arithmetic():
    from _arithmetic import distillation_flops, forward_flops, mlp_update_flops, update_flops

    # By hand: 28 × 28 × 9 × 1 × 64, 14 × 14 × 9 × 64 × 256, 7 × 7 × 256 × 10, each twice and for 32 images.
    assert forward_flops((64, 256), 32) == [28_901_376, 1_849_688_064, 8_028_160]
    assert update_flops((64, 256), 32) == 2 * 28_901_376 + 3 * (1_849_688_064 + 8_028_160)
    assert distillation_flops((8, 16), None, 32) == update_flops((8, 16), 32)
    assert distillation_flops((8, 16), (64, 256), 32) - update_flops((8, 16), 32) == sum(forward_flops((64, 256), 32))

    def mlp(params, images):
        return jnp.sum(jax.nn.relu(images @ params[0]) @ params[1])

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((784, 64), (64, 10))]
    images = jax.ShapeDtypeStruct((32, 784), jnp.float32)
    counted = jax.jit(jax.grad(mlp)).lower(shapes, images).compile().cost_analysis()["flops"]
    # The sum's gradient is a constant: of the logits' three products XLA needs the gradients' two.
    assert mlp_update_flops(64, 32) == pytest.approx(counted + 2 * 32 * 64 * 10, rel=0.02)


@pytest.mark.parametrize(("backend", "met"), [("gpu", False), ("cpu", None)])
def test_what_many_students_cost_is_judged_by_the_faster_way_of_each(backend, met):
    from sweep import ways_compared

    by_way = {
        "vmap": {1: [2.0, 2.5, 3.0], 32: [6.0, 6.5, 7.0]},
        "one by one": {1: [1.0, 2.0, 3.0], 32: [60.0, 64.0, 70.0]},
    }
    result = ways_compared(by_way, backend)
    assert result["faster"] == "vmap"
    assert result["slower_over_faster"] == pytest.approx(64 / 6.5)
    assert result["over_one"] == pytest.approx(6.5 / 2.0)
    assert result["met"] == met


def test_students_one_by_one_learn_what_the_vmapped_ones_do():
    import sweep

    states = []
    for way in sweep.WAYS:
        case = sweep.case("MLP", "online", way, 2, 4)
        states.append(case.step(case.state, case.teacher, case.objective, case.batches[0])[0])
    vmapped, one_by_one = states
    chex.assert_trees_all_close(vmapped.params, sweep.stack(one_by_one).params, rtol=1e-4, atol=1e-6)


def test_turns_are_of_as_many_steps_as_last_so_long():
    from _turns import in_turns, rounds

    counts = {"quick": [], "slow": []}

    def run(name, seconds, count):
        counts[name].append(count)
        time.sleep(seconds * count)

    cases = {"quick": partial(run, "quick", 0.0), "slow": partial(run, "slow", 0.02)}
    times = in_turns(cases, 0.01, 3)
    assert counts["slow"] == [2, 1] + 3 * [1, 1]
    assert all(count > 1 for count in counts["quick"][3::2])
    assert {name: len(values) for name, values in times.items()} == {"quick": 3, "slow": 3}
    assert min(times["slow"]) >= 20
    assert len(rounds(cases, 2, 1)["slow"]) == 1
    assert counts["slow"][-2:] == [3, 2]  # the warm-up, and the turn


@pytest.mark.slow
def test_a_wide_step_goes_through_the_librarys_loop(monkeypatch):
    """One step a call and many: the same losses; that of a first step is compared with PyTorch's."""
    import _wrn_kdjax
    from _work import random_batches
    from _wrn_work import FLOAT32, IMAGE, KDJAX, STEP, Way

    from kdjax.models import CNN

    monkeypatch.setattr(_wrn_kdjax, "make_model", lambda name, **keywords: CNN(widths=(2,), **keywords))
    batches = random_batches(4, 2, IMAGE)
    weights = _wrn_kdjax.initial_weights(batches[0][0])
    losses = []
    for scanned in (False, True):
        step = _wrn_kdjax.steps(weights, batches, 8, Way(KDJAX, FLOAT32, scanned=scanned))[STEP]
        losses.append([step(1), step(_wrn_kdjax.CHUNK)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_number_below_its_least_is_named():
    from steps import Benchmark

    with pytest.raises(ValueError, match="rounds must be at least 3; got 2"):
        Benchmark(rounds=2)


def test_a_piece_that_fails_or_lasts_stops_no_other(tmp_path):
    import everything

    for name, code, minutes, how in (
        ("good", "print('well')", 1, "done"),
        ("bad", "raise SystemExit(3)", 1, "failed with 3"),
        ("long", "import time; print('begun', flush=True); time.sleep(60)", 0.03, "stopped after 0.03 minutes"),
    ):
        result = everything.run(name, ["-c", code], everything.Piece(minutes, "", "", {}), {}, tmp_path)
        assert result["ended"] == how
    assert (tmp_path / "good.txt").read_text() == "well\n"
    assert (tmp_path / "long.txt").read_text() == "begun\n"


def test_the_pieces_name_files_that_exist():
    from _everything_pieces import CORE, LONGEST, PIECES, TESTS

    root = BENCHMARKS.parent
    assert set(CORE.split()) <= set(TESTS.split())
    for name in TESTS.split():
        assert (root / "tests" / f"test_{name}.py").exists()
    for piece in PIECES.values():
        for command in (piece.command, piece.quick):
            script = command.split()[0]
            assert script in ("-c", "-m") or (root / script).exists()
        assert piece.minutes <= LONGEST
