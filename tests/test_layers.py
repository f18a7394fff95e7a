"""The one law of the architecture: imports go down only. Read from the source, so that no import order hides a breach."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kdjax"

# From the ground up; a package may import those of the layers below its own, and nothing else of kdjax.
LAYERS = (
    {"_types"},
    {"_apply", "_checks", "_files", "_processes"},
    {"_trees", "batches"},
    {"_checkpoint_folders", "losses"},
    {"_checkpoint_contents", "connectors", "networks", "objectives", "testing"},
    {"checkpoints", "data", "metrics", "models"},
    {"training"},
    {"caching", "export"},
    {"runs"},
    {"command"},
    {"__main__"},
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
HEAVY = {
    "flax": {"models", "networks"},
    "equinox": {"networks"},
    "chex": {"testing"},
    "hypothesis": {"testing"},
    "orbax": {"_checkpoint_contents", "checkpoints"},
    "tensorflow_datasets": {"data"},
    "grain": {"data"},
    "PIL": {"data"},
    "sklearn": {"data"},
    "matplotlib": {"runs"},
    "rich": {"command", "runs"},
    "tyro": {"command"},
    "safetensors": {"export"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "jax2onnx": {"export"},
}
NEVER = {"beartype", "torch", "tensorflow"}
FILES = sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    """The top-level package or module that a file belongs to."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            assert all(alias.name != "kdjax" for alias in node.names), f"{path} imports the whole package"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; write the module's full name"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_file_has_a_layer():
    packages = {package_of(path) for path in FILES} - {"__init__"}
    assert packages == LAYER.keys(), f"this test must know the layer of {sorted(packages ^ LAYER.keys())}"


def test_a_test_file_is_named_after_what_it_tests():
    """``test_<package>_<file>_<aspect>.py``, the last two as far as they are needed."""
    others = {"benchmarks", "docs", "doctests", "drop", "experiments", "layers", "package", "readme", "verification"}
    others |= {"determinism", "faults", "fuzzed", "kept", "long", "mutation"}
    subjects = {name.strip("_") for name in LAYER} | others
    for path in Path(__file__).parent.glob("test_*.py"):
        assert path.stem.split("_")[1] in subjects, f"{path.name}: which package's test is it?"
    for package in ("networks", "training"):
        for path in (PACKAGE / package).glob("*.py"):
            name = path.stem.strip("_")
            found = list(Path(__file__).parent.glob(f"test_{package}_{name}*.py"))
            assert found or name in {"init", "axis", "views"}, f"{path} has no test file of its name"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    here = package_of(path)
    if here == "__init__":
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "kdjax" or name == "kdjax":
            continue
        # `from kdjax import x` is read as kdjax and kdjax.x; x must be a package: what kdjax itself exports is above.
        there = parts[1]
        assert there in LAYER, f"{here} imports {name} from kdjax itself, which stands above it"
        assert there == here or LAYER[there] < LAYER[here], f"{here} imports {there}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_stay_in_their_rooms(path):
    for name in imported(path):
        package = name.split(".")[0]
        assert package not in NEVER, f"{path.name} imports {package}, which belongs to tests or scripts"
        if package in HEAVY:
            assert package_of(path) in HEAVY[package], f"only {sorted(HEAVY[package])} may import {package}"


def test_losses_know_only_arrays():
    allowed = {"jax", "jaxtyping", "collections", "functools", "inspect", "math", "typing", "kdjax", "numpy"}
    for path in (PACKAGE / "losses").glob("*.py"):
        assert {name.split(".")[0] for name in imported(path)} <= allowed, path


def test_import_kdjax_loads_no_heavy_package():
    code = f"import sys, kdjax; print(sorted({set(HEAVY) | NEVER!r} & {{name.split('.')[0] for name in sys.modules}}))"
    # -W error: importing kdjax warns of nothing either.
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
