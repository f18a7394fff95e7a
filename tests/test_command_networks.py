"""Networks of the command: by name, and one's own by module and function."""

import sys

import jax
import jax.numpy as jnp
import pytest

import kdjax.runs.compare  # noqa: F401  (so that no report is written)
from kdjax.command import _networks, main

SOURCE = """
from flax import linen as nn
from kdjax.networks import from_linen

class Small(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(self.classes)(inputs.reshape(len(inputs), -1))

def as_a_pair(classes):
    return from_linen(Small(classes))

def of_nothing():
    return Small(10)

def a_word(classes):
    return "word"

def fails(classes):
    return None + classes

def leaves(classes):
    raise SystemExit(0)

WIDTH = 8
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module in the present folder, in a package; forgotten afterwards."""
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "networks.py").write_text(SOURCE)
    (tmp_path / "own_package" / "broken.py").write_text("def Small(:\n")
    (tmp_path / "own_package" / "needy.py").write_text("import nobody_has_this\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "own_package"]:
        del sys.modules[name]


@pytest.mark.parametrize("function", ["Small", "as_a_pair"])
def test_a_function_or_a_module_s_class_is_a_network(own, function):
    init, apply = _networks.network(f"own_package.networks:{function}", 7)
    inputs = jnp.zeros((2, 4, 4, 1))
    outputs, _ = apply(*init(jax.random.key(0), inputs), inputs, train=False)
    assert outputs.logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_package.networks:smal", "has no function smal; did you mean Small?"),
        ("own_package.networks:WIDTH", "must be a function; got 8"),
        ("own_package.network:Small", "there is no module network in own_package; did you mean networks?"),
        ("own_packages.networks:Small", "there is no module own_packages in "),
        ("own_package.networks:fails", "own_package.networks:fails failed by itself: TypeError("),
        ("own_package.networks:leaves", "own_package.networks:leaves failed by itself: SystemExit(0)"),
        ("own_package.broken:Small", "own_package.broken:Small failed by itself: SyntaxError("),
        ("own_package.networks:of_nothing", "must take the number of classes, as classes=10"),
        (
            "own_package.networks:a_word",
            "must return a network, or a pair of functions (init, apply): module must be a flax.linen.Module",
        ),
    ],
)
def test_what_is_no_network_is_named_with_what_is_near(own, name, said):
    with pytest.raises(ValueError, match="own_package") as error:
        _networks.network(name, 10)
    assert said in str(error.value)


def test_a_module_that_lacks_another_is_not_said_to_be_missing_itself(own, capsys):
    words = ["--teacher", "own_package.needy:f", "--student", "cnn_tiny", "--data", "digits"]
    assert main(["compare", *words]) == 1
    assert "the module nobody_has_this is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["own_package.networks:", ":Small", "own package:Small", "a:b:c"])
def test_words_that_name_no_function_are_refused(name):
    with pytest.raises(ValueError, match="must be MODULE:FUNCTION, such as"):
        _networks.check_name("--teacher", name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet21", "resnet20"),
        ("resnet8_x4", "resnet8x4"),
        ("vgg_8", "vgg8"),
        ("mobilenetv2_half", "mobilenet_v2_half"),
        ("shufflenet_v3", "shufflenet_v2"),
        ("vit_tny", "vit_tiny"),
    ],
)
def test_a_mistyped_name_is_told_what_is_near(name, near):
    with pytest.raises(
        ValueError, match=f"--student must be one of cnn_tiny, .*; got '{name}'. Did you mean .*'{near}'"
    ):
        _networks.check_name("--student", name)


def test_one_s_own_network_is_compared_verified_and_exported(own, capsys):
    words = ["--teacher", "cnn_tiny", "--student", "own_package.networks:Small", "--data", "digits"]
    assert main(["compare", *words, "--epochs", "1", "--seeds", "1", "--print-every", "0"]) == 0
    run = "runs/own_package.networks.Small-from-cnn_tiny"
    assert "own_package.networks:Small from cnn_tiny" in capsys.readouterr().out
    assert main(["verify", run]) == 1  # a stranger's run could name a module that lies beside it
    assert "own_package.networks:Small. Where the run is your own, say --import-networks" in capsys.readouterr().err
    assert main(["verify", run, "--import-networks"]) == 0
    assert main(["export", run, "--import-networks", "--to", "student.stablehlo"]) == 0
    assert (own / "student.stablehlo").exists()


def test_residual_networks_have_the_compiler_set_for_them():
    names = ["cnn", "wrn_10_1", "own_package.networks:Small"]
    assert [name for name in names if _networks.is_residual(name)] == ["wrn_10_1"]
