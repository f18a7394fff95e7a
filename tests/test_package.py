"""What is handed out: the wheel and the source archive that are built here, without network, and what stands beside them."""

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import kdjax

ROOT = Path(__file__).parents[1]
DOWNSTREAM = """\
from typing import Any

import jax
import kdjax
from kdjax import Outputs, TrainState, Weights, init_state, make_train_step, on_logits, weighted_sum
from kdjax.losses import soft_target_kl

def apply(
    params: jax.Array, model_state: object, inputs: jax.Array, *, train: bool, rng: jax.Array | None = None
) -> tuple[Outputs, object]:
    return Outputs(inputs @ params, {}), model_state

def trained(teacher: Weights, student: Weights, batch: dict[str, jax.Array], optimizer: Any) -> TrainState:
    objective = weighted_sum(labels=(0.3, kdjax.cross_entropy), soft=(0.7, on_logits(soft_target_kl, temperature=4.0)))
    state = init_state(student, optimizer, jax.random.key(0))
    state, metrics = make_train_step(apply, apply, optimizer)(state, teacher, objective, batch)
    per_example: jax.Array = soft_target_kl(metrics["loss"], metrics["loss"])
    return state
"""


def built(kind, source, folder):
    pytest.importorskip("hatchling", reason="builds the package: needs kdjax[dev]")
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = folder.iterdir()
    return file


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return built("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def metadata(wheel):
    (text,) = (text for name, text in contents(wheel).items() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(text)


def test_the_wheel_holds_the_package_its_marker_of_types_and_its_licence(wheel):
    inside = contents(wheel)
    package = {name for name in inside if ".dist-info/" not in name}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "kdjax").rglob("*.py")}
    assert package == sources | {"kdjax/py.typed"}
    (licence,) = (text for name, text in inside.items() if name.endswith("/licenses/LICENSE"))
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_the_source_archive_builds_the_same_wheel(wheel, tmp_path):
    archive = built("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("kdjax-*")
    assert contents(built("wheel", source, tmp_path / "wheel")) == contents(wheel)
    there = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    assert {"LICENSE", "Makefile", "requirements.lock", "tests/cases.py", "experiments/digits.py"} <= there
    assert not [name for name in there if re.search(r"__pycache__|^\.cache|^\.venv|^checkpoints/.*/|\.pyc$", name)]


def test_the_metadata_say_what_is_so(metadata):
    assert metadata["Name"] == "kdjax"
    assert metadata["Version"] == kdjax.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert "# kdjax" in metadata.get_payload()
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= {*metadata.get_all("Classifier")}
    # There is no address yet at which the project is; a wrong one would be somebody else's.
    assert metadata.get_all("Project-URL") is None


def required(metadata, extra):
    """The packages that come with ``kdjax[extra]``, without those that always come."""
    lines = [line.partition(";") for line in metadata.get_all("Requires-Dist")]
    return {re.match(r"[\w-]+", name)[0] for name, _, when in lines if f"extra == '{extra}'" in when}


def test_the_core_is_four_packages_and_runs_bring_what_runs_need(metadata):
    core = {re.match(r"[\w-]+", line)[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert core == {"jax", "jaxtyping", "numpy", "optax"}
    wanted = {"flax", "matplotlib", "orbax-checkpoint", "rich", "scikit-learn", "tensorflow-datasets"}
    assert wanted <= required(metadata, "runs")


def test_users_have_the_types(wheel, tmp_path):
    """`mypy --strict` over ten lines of somebody else's, against the wheel: no error; a wrong type is one."""
    pytest.importorskip("mypy", reason="checks types: needs kdjax[dev]")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    (tmp_path / "right.py").write_text(DOWNSTREAM)
    (tmp_path / "wrong.py").write_text(
        DOWNSTREAM.replace(
            'soft_target_kl(metrics["loss"], metrics["loss"])', 'soft_target_kl(metrics["loss"], "loss")'
        )
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--verbose", "--config-file=", "--cache-dir=cache"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [*command, "right.py", "wrong.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    # The checkout is installed too; it is the wheel that was read.
    assert f"{tmp_path}/installed/kdjax/losses/_logits.py" in done.stderr
    assert f"{ROOT}/kdjax/" not in done.stderr
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, done.stdout
    assert re.match(r'wrong\.py:\d+: error: Argument 2 to "soft_target_kl" has incompatible type "str"', errors[0])


def test_the_citation_has_what_its_format_asks_for():
    yaml = pytest.importorskip("yaml", reason="reads CITATION.cff: needs kdjax[docs]")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert all(isinstance(cited[name], str) and cited[name] for name in ("message", "title"))
    assert cited["authors"]
    assert all(set(author) <= {"name"} and author["name"] for author in cited["authors"])
    assert cited["license"] == "Apache-2.0"
    # Nothing beside what the format knows, and no second place for the version.
    assert set(cited) <= {"cff-version", "message", "title", "authors", "abstract", "type", "keywords", "license"}


def test_whoever_builds_elsewhere_runs_the_same_commands():
    yaml = pytest.importorskip("yaml", reason="reads the workflow: needs kdjax[docs]")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = [hook["entry"] for hook in hooks]
    entries += re.findall(r"^RUN (make .*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(entries) == 3
    assert all(entry.removeprefix("make ") in targets for entry in entries)


def test_what_git_ignores_does_not_go_into_an_image():
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()}
    left_out = {line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().split()}
    assert ignored <= left_out


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_the_pages_name_what_there_is(page):
    text = (ROOT / page).read_text()
    named = re.findall(r"\]\((?!http)([^)]*)\)", text) + re.findall(
        r"(?<=[ `])((?:tests|docs|benchmarks)/[\w/*.]+)", text
    )
    assert all(list(ROOT.glob(name)) for name in named), named
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {*re.findall(r"`make (\w+)`|^make (\w+) ", text, re.MULTILINE)} <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }
