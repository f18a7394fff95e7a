"""The house's one law: imports go down only. Read from the source, so that no import order can hide a breach."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kdjax"

FLOORS = {
    "_types": 0,
    "_checks": 0,
    "_paths": 0,
    "_processes": 0,
    "_leaves": 1,
    "losses": 1,
    "schedules": 2,
    "terms": 2,
    "objectives": 2,
    "connectors": 2,
    "training": 3,
    "parallel": 3,
    "sharding": 3,
    "sweeps": 3,
    "adapters": 3,
    "ensembles": 3,
    "online": 3,
    "transfer": 3,
    "freezing": 3,
    "clipping": 3,
    "phases": 3,
    "views": 3,
    "layers": 3,
    "projections": 3,
    "checkpoints": 4,
    "records": 4,
    "_kept": 4,
    "caching": 4,
    "cached_views": 4,
    "data": 4,
    "models": 4,
    "metrics": 4,
    "probes": 4,
    "report": 4,
}
# On floors 2 to 4, neighbours that one file may read.
NEIGHBOURS = {
    ("terms", "schedules"),
    ("objectives", "schedules"),
    ("objectives", "terms"),
    ("parallel", "training"),
    ("sharding", "parallel"),
    ("sweeps", "training"),
    ("online", "training"),
    ("views", "training"),
    ("projections", "layers"),
    ("online", "ensembles"),
    ("phases", "training"),
    ("report", "metrics"),
    ("report", "records"),
    ("checkpoints", "records"),
    ("_kept", "records"),
    ("caching", "_kept"),
    ("cached_views", "_kept"),
    ("cached_views", "caching"),
    ("cached_views", "data"),
}
HEAVY = {
    "flax": {"models", "adapters"},
    "equinox": {"adapters"},
    "orbax": {"checkpoints"},
    "tensorflow_datasets": {"data"},
    "grain": {"data"},
    "PIL": {"data"},
    "sklearn": {"data"},
    "matplotlib": {"report"},
    "rich": {"report"},
}
NEVER = {"chex", "hypothesis", "beartype", "torch", "tensorflow", "tyro"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The top-level module that a file belongs to."""
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


def test_every_file_has_a_floor():
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms <= FLOORS.keys(), f"name the floor of {sorted(rooms - FLOORS.keys())} in this test"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    here = room(path)
    if here == "__init__":
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "kdjax":
            continue
        # `from kdjax import x` is read as kdjax and kdjax.x; x must be a room: what the package itself exports is above.
        assert name == "kdjax" or parts[1] in FLOORS, f"{here} imports {name} from the package, which stands above it"
        if name == "kdjax":
            continue
        there = parts[1]
        down = FLOORS[there] < FLOORS[here]
        assert down or there == here or (here, there) in NEIGHBOURS, f"{here} imports {there}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_stay_in_their_rooms(path):
    for name in imported(path):
        package = name.split(".")[0]
        assert package not in NEVER, f"{path.name} imports {package}, which belongs to tests or scripts"
        if package in HEAVY:
            assert room(path) in HEAVY[package], f"only {sorted(HEAVY[package])} may import {package}"


def test_losses_know_only_arrays():
    allowed = {"jax", "jaxtyping", "collections", "functools", "math", "typing", "kdjax", "numpy"}
    for path in (PACKAGE / "losses").glob("*.py"):
        assert {name.split(".")[0] for name in imported(path)} <= allowed, path


def test_import_kdjax_loads_no_heavy_package():
    code = f"import sys, kdjax; print(sorted({set(HEAVY) | NEVER!r} & {{name.split('.')[0] for name in sys.modules}}))"
    # -W error: importing kdjax warns of nothing either.
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
