"""StableHLO: every model opens in a process without kdjax and flax and answers as before; what is wrong is named."""

import json
import subprocess
import sys

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from kdjax import Weights
from kdjax.data import unit_range
from kdjax.export import open_stablehlo, to_stablehlo
from kdjax.models import CNN, WideResNet
from kdjax.networks import from_linen

# With and without normalisation, dropout and a hidden layer; by shifts, plain, and with the gradient of wide kernels.
MODELS = {
    "cnn": (CNN((4, 8), hidden=16, padding="VALID"), (10, 12, 1)),
    "normalised": (CNN((64, 128), batch_norm=True, dropout=0.3), (8, 8, 3)),
    "wide_resnet": (WideResNet(depth=10, width=1, classes=7), (16, 16, 3)),
}
STRANGER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("kdjax", "flax", "orbax", "optax"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import jax, jax.export, json, numpy as np
for name in sys.argv[2:]:
    try:
        import kdjax
        raise SystemExit("kdjax could be imported, so this proves nothing")
    except ImportError:
        program = jax.export.deserialize(bytearray(open(f"{sys.argv[1]}/{name}.stablehlo", "rb").read()))
    record = json.load(open(f"{sys.argv[1]}/{name}.stablehlo.json"))
    inputs = np.load(f"{sys.argv[1]}/{name}.npy")
    assert record["inputs"]["inputs"] == {"shape": [None, *inputs.shape[1:]], "dtype": str(inputs.dtype)}
    np.save(f"{sys.argv[1]}/{name}-logits.npy", jax.jit(program.call)(inputs))
"""


def linear(params, model_state, inputs, *, train, rng=None):
    return inputs @ params, model_state


PICTURES = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
WEIGHTS = Weights(np.arange(8.0, dtype=np.float32).reshape(4, 2), {})


def pictures(shape, batch):
    return np.random.default_rng(batch).integers(0, 256, (batch, *shape)).astype(np.uint8)


def network(module, shape):
    init, apply = from_linen(module)
    return jax.jit(init)(jax.random.key(0), unit_range(pictures(shape, 1))), apply


def test_every_model_answers_in_a_process_without_kdjax_and_flax(tmp_path):
    expected = {}
    for name, (module, shape) in MODELS.items():
        weights, apply = network(module, shape)
        words = [f"class {number}" for number in range(module.classes)]
        record = to_stablehlo(
            tmp_path / f"{name}.stablehlo", apply, weights, pictures(shape, 2), preprocess=unit_range, class_names=words
        )
        assert record["class_names"] == words
        assert record["preprocess"] == "unit_range"
        assert record["platforms"] == ["cpu", "cuda", "tpu"]
        assert record["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(weights.params))
        assert 0 <= record["largest_difference"] < 1e-4
        assert record["bytes"] == (tmp_path / f"{name}.stablehlo").stat().st_size
        assert json.loads((tmp_path / f"{name}.stablehlo.json").read_text()).items() > record.items()
        inputs = pictures(shape, 5)  # a batch of another size than the example
        np.save(tmp_path / f"{name}.npy", inputs)
        expected[name] = np.asarray(apply(*weights, unit_range(inputs), train=False)[0].logits)
    subprocess.run([sys.executable, "-c", STRANGER, tmp_path, *MODELS], check=True)
    for name, logits in expected.items():
        assert np.ptp(logits) > 0.1
        np.testing.assert_allclose(np.load(tmp_path / f"{name}-logits.npy"), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in families.SMALL if name != "wide_resnet"])
def test_every_family_answers_as_before(name, tmp_path, monkeypatch):
    families.shorten(monkeypatch)
    module, (_, *shape) = families.SMALL[name]
    _, apply = from_linen(module)
    weights = families.filled(module, (1, *shape))
    record = to_stablehlo(tmp_path / "student", apply, weights, families.images(2, *shape))
    inputs = families.images(3, *shape, seed=1)  # a batch of another size than the example
    call, _ = open_stablehlo(tmp_path / "student")
    expected = jax.jit(lambda inputs: apply(*weights, inputs, train=False)[0].logits)(inputs)
    assert record["platforms"] == ["cpu", "cuda", "tpu"]
    np.testing.assert_allclose(call(inputs), expected, rtol=0, atol=1e-4 * np.ptp(expected))


def test_a_program_says_nothing_of_the_folders_in_which_it_was_made(tmp_path):
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 10)  # as users have it
    try:
        init, apply = tiny.network(3)
        inputs = jnp.ones((2, 8, 8, 1))
        to_stablehlo(tmp_path / "program", apply, init(jax.random.key(0), inputs), inputs, platforms=("cpu",))
        assert getattr(jax.config, name) == 10
    finally:
        jax.config.update(name, before)
    program = (tmp_path / "program").read_bytes()
    assert b".py" not in program
    assert b"site-packages" not in program


def test_inputs_may_be_a_tree(tmp_path):
    def both(params, model_state, inputs, *, train, rng=None):
        return (inputs["left"] + inputs["right"]["far"]) @ params, model_state

    example = {"left": PICTURES, "right": {"far": 2 * PICTURES}}
    record = to_stablehlo(tmp_path / "tree", both, WEIGHTS, example)
    assert list(record["inputs"]) == ["left", "right/far"]
    call, _ = open_stablehlo(tmp_path / "tree")
    np.testing.assert_allclose(call(example), 3 * PICTURES @ WEIGHTS.params, rtol=1e-5)


def test_a_program_is_opened_again_and_refuses_other_inputs(tmp_path):
    path = tmp_path / "new" / "student"
    record = to_stablehlo(path, linear, WEIGHTS, PICTURES, platforms=("cpu",))
    call, found = open_stablehlo(path)
    assert found == record
    assert call(PICTURES[:1]).shape == (1, 2)
    with pytest.raises(ValueError, match=r"expected float32 and called with int32"):
        call(PICTURES.astype(np.int32))
    with pytest.raises(ValueError, match=r"expected \(batch, 4\) and called with \(3, 3\)"):
        call(PICTURES[:, :3])


def test_a_program_for_other_platforms_is_not_run_here(tmp_path):
    record = to_stablehlo(tmp_path / "student", linear, WEIGHTS, PICTURES, platforms=("tpu",))
    assert record["largest_difference"] is None
    call, _ = open_stablehlo(tmp_path / "student")
    with pytest.raises(ValueError, match="tpu"):
        call(PICTURES)


def test_a_changed_program_and_a_changed_record_are_refused(tmp_path):
    path, beside = tmp_path / "student", tmp_path / "student.json"
    to_stablehlo(path, linear, WEIGHTS, PICTURES, platforms=("cpu",))
    whole, record = path.read_bytes(), beside.read_text()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for damaged in (bytes(changed), whole[:-1], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"program .*student is damaged"):
            open_stablehlo(path)
    path.write_bytes(whole)
    nested = '{"sha256": ' * 100_000
    renamed = record.replace("float32", "float64", 1)
    assert renamed != record
    for damaged in (record[:-9], "[1]", "{}", nested, renamed):
        beside.write_text(damaged)
        with pytest.raises(ValueError, match=r"record .*student\.json is damaged"):
            open_stablehlo(path)
    beside.unlink()
    with pytest.raises(FileNotFoundError, match=r"student\.json is missing"):
        open_stablehlo(path)


def test_an_export_that_failed_or_was_killed_before_the_program_is_made_again(tmp_path, monkeypatch):
    def export():
        return to_stablehlo(tmp_path / "student", linear, WEIGHTS, PICTURES, platforms=["cpu"])

    def full(path, data):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kdjax.export._stablehlo.write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            export()
    assert not list(tmp_path.iterdir())
    export()
    (tmp_path / "student").unlink()  # the record alone, as a kill leaves it
    export()
    open_stablehlo(tmp_path / "student")
    (tmp_path / "student").unlink()
    (tmp_path / "student.json").write_text('{"mine": 1}')
    with pytest.raises(FileExistsError, match=r"student\.json exists already"):
        export()


def test_what_stands_at_the_path_stays(tmp_path):
    path = tmp_path / "student"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="path must be free"):
        to_stablehlo(path, linear, WEIGHTS, PICTURES)
    assert path.read_text() == "mine"
    (tmp_path / "other.json").write_text("mine")
    with pytest.raises(FileExistsError, match=r"path must be free .*other\.json exists"):
        to_stablehlo(tmp_path / "other", linear, WEIGHTS, PICTURES)
    assert not (tmp_path / "other").exists()


def whole_numbers(inputs):
    return inputs.astype(jnp.int32)


def in_pairs(params, model_state, inputs, *, train, rng=None):
    return inputs.reshape(-1, 2, 4).sum(1) @ params, model_state


def infinite(params, model_state, inputs, *, train, rng=None):
    return inputs @ params / 0, model_state


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"example": PICTURES[:, :3]}, r"example and weights must be the network's; got float32\[3, 3\]"),
        ({"example": PICTURES, "preprocess": unit_range}, r"got float32\[3, 4\]: inputs must be uint8"),
        ({"example": PICTURES[:0]}, r"example must be a batch, .* got float32\[0, 4\]"),
        ({"example": np.float32(1)}, r"example must be a batch, .* got float32\[\]"),
        ({"example": {}}, r"example must be a batch, .* got no arrays"),
        ({"class_names": ["one"]}, r"class_names must be 2 different words, .* got \['one'\]"),
        ({"class_names": ["one", "one"]}, r"class_names must be 2 different words"),
        ({"class_names": "ab"}, r"class_names must be 2 different words"),
        ({"platforms": ("gpu",)}, r"platforms must be one of cpu, cuda, rocm, tpu; got 'gpu'"),
        ({"platforms": ()}, r"platforms must name at least one"),
        ({"apply": in_pairs, "example": PICTURES[:2]}, r"apply must take a batch of any size"),
        ({"apply": infinite}, r"weights must give finite logits"),
    ],
)
def test_what_cannot_be_exported_is_named_and_nothing_written(changed, message, tmp_path):
    given = {"apply": linear, "weights": WEIGHTS, "example": PICTURES} | changed
    with pytest.raises(ValueError, match=message):
        to_stablehlo(tmp_path / "student", **given)
    assert list(tmp_path.iterdir()) == []


def test_logits_that_differ_are_refused_and_nothing_written(tmp_path, monkeypatch):
    """As a program would give that was lowered wrongly."""
    real = jax.export.deserialize

    class Wrong:
        def __init__(self, data):
            self.right = real(data)

        def call(self, inputs):
            return self.right.call(inputs) * 1.001

    monkeypatch.setattr(jax.export, "deserialize", Wrong)
    with pytest.raises(ValueError, match=r"must be the network's within .* \(tolerance\) .* they differ by"):
        to_stablehlo(tmp_path / "student", linear, WEIGHTS, PICTURES)
    assert list(tmp_path.iterdir()) == []
    assert to_stablehlo(tmp_path / "student", linear, WEIGHTS, PICTURES, tolerance=0.01)["largest_difference"] > 0


def test_an_answer_for_one_example_that_is_no_number_is_refused_and_nothing_written(tmp_path):
    def standardised(x):
        return (x - x.mean(0, keepdims=True)) / x.std(0, keepdims=True)

    with pytest.raises(ValueError, match=r"they differ by nan\. Nothing was written\."):
        to_stablehlo(tmp_path / "student", linear, WEIGHTS, PICTURES, preprocess=standardised)
    assert list(tmp_path.iterdir()) == []


def test_a_program_takes_the_numbers_that_jax_has(tmp_path):
    record = to_stablehlo(tmp_path / "student", linear, WEIGHTS, PICTURES.astype(np.float64), platforms=("cpu",))
    assert record["inputs"]["inputs"]["dtype"] == "float32"


def of_its_length(params, model_state, inputs, *, train, rng=None):
    return inputs.reshape(len(inputs), -1) @ params, model_state


def from_the_mean(params, model_state, inputs, *, train, rng=None):
    return (inputs - inputs.sum(0, keepdims=True) / len(inputs)) @ params, model_state


def test_a_network_that_asks_for_the_size_of_the_batch_takes_each_example_alone(tmp_path):
    to_stablehlo(tmp_path / "student", of_its_length, WEIGHTS, PICTURES)
    call, _ = open_stablehlo(tmp_path / "student")
    np.testing.assert_allclose(call(PICTURES[:2]), PICTURES[:2] @ WEIGHTS.params, rtol=1e-5)
    with pytest.raises(ValueError, match="they differ by"):
        to_stablehlo(tmp_path / "other", from_the_mean, WEIGHTS, PICTURES)
    with pytest.raises(ValueError, match="example must have two rows or more where the network wants the batch's size"):
        to_stablehlo(tmp_path / "other", from_the_mean, WEIGHTS, PICTURES[:1])
    assert not (tmp_path / "other").exists()


def test_a_network_in_half_precision_has_float32_logits(tmp_path):
    init, apply = from_linen(tiny.Dense(dtype=jnp.bfloat16))
    weights = init(jax.random.key(0), PICTURES)
    record = to_stablehlo(tmp_path / "student", apply, weights, PICTURES, platforms=("cpu",), tolerance=0.02)
    assert record["logits"] == {"shape": [None, 10], "dtype": "float32"}
