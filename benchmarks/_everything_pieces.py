"""The pieces of everything.py, the most wanted first: a command each, and its minutes."""

import shlex
from typing import NamedTuple

from _everything_figures import STUDENTS

TESTS = (
    "losses losses_special losses_train losses_features losses_logits losses_graph losses_bank losses_contrastive "
    "losses_contrastive_values objectives_terms training_step connectors training_online training_phases training_sweeps "
    "networks_pca models models_wide_resnet networks_precision networks_ensembles training_optimizers_freezing "
    "networks_transfer caching metrics"
)
"""Those that ask the device for numbers; what is about files, processes and several devices a CPU tells as well."""
CORE = "losses losses_special losses_train objectives_terms training_step models networks_precision"
"""Those among them that come first."""
LONGEST = 8.5
"""Minutes of a piece."""
CARRIED = {"mnist": "mnist.npz", "cifar": "cifar10-jpeg75.npz"}


class Piece(NamedTuple):
    """A command, and how many minutes it gets; ``{out}``, ``{platform}``, ``{ledger}``, ``{mnist}`` … are filled in."""

    minutes: float
    command: str
    quick: str
    environment: dict[str, str]


def _benchmark(script: str, minutes: float, options: str = "", *, name: str = "", **environment: str) -> Piece:
    command = f"benchmarks/{script}.py {options} --out {{out}}/{name or script}.json"
    return Piece(minutes, command, f"{command} --quick", environment)


def _profile(name: str, **environment: str) -> Piece:
    options = f"--figure {{out}}/{name}-{{backend}}.png --traces {{out}}/{name}-traces"
    return _benchmark("profile_step", 4, options, name=name, **environment)


def _wrn(precision: str, minutes: float, options: str = "", *, name: str) -> Piece:
    options = f"--platform {{platform}} --precision {precision} --batch 128 --steps 40 {options}"
    return _benchmark("wrn", minutes, options, name=name)


def _pair(minutes: float, options: str, *, name: str) -> Piece:
    """Of the pair of wide residual networks, one method and seed. A trial's networks are small ones."""
    command = f"benchmarks/pairs.py --methods KD --seeds 1 --platform {{platform}} --out {{out}}/{name}.json"
    return Piece(minutes, f"{command} --pair wrn {options}", f"{command} --quick --steps 3 --alone", {})


def _experiment(name: str, minutes: float, options: str, quick: str = "") -> Piece:
    command = f"experiments/{name}.py {options} --out {{out}}/{name} --resume"
    return Piece(minutes, command, f"{command} --seeds 1 --epochs 1 {quick}", {})


def _tests(names: str, options: str, quick: str, *, name: str, minutes: float = LONGEST, **environment: str) -> Piece:
    files = " ".join(f"tests/test_{one}.py" for one in names.split())
    pytest = f"-m pytest -p no:cacheprovider -q -rfE --tb=short --junitxml {{out}}/{name}.xml"
    # Memory as it is needed: the processes share the device.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | environment
    command = f"{pytest} {{workers}} -m 'not slow' {options} {files}"
    return Piece(minutes, command, f"{pytest} {quick}", environment)


MACHINE = """
import jax, json, os, platform
from importlib.metadata import distributions
devices = [{"kind": device.device_kind, "memory": device.memory_stats()} for device in jax.devices()]
packages = {one.metadata["Name"]: one.version for one in distributions()}
print(json.dumps({"backend": jax.default_backend(), "devices": devices, "cores": os.cpu_count(), "python":
platform.python_version(), "packages": packages}, indent=1))
"""

IN_FLOAT32 = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
# As `make quick` has them.
FAST = "-k 'not (bad_points or slopes or golden or finite_differences or couples or Variants or float64)'"
TRIAL = "tests/test_networks_precision.py"
# The most wanted first. The measuring pieces hold the machine alone; nothing here runs beside another.
PIECES: dict[str, Piece] = {
    "machine": Piece(0.5, f"-c {shlex.quote(MACHINE)}", f"-c {shlex.quote(MACHINE)}", {}),
    "tests-core": _tests(CORE, FAST, TRIAL, name="tests-core", minutes=2, **IN_FLOAT32),
    "wrn-bfloat16": _wrn("bfloat16", 3, "--rounds 5 --brief", name="wrn-bfloat16"),
    "wrn-TF32": _wrn("TF32", 3, "--rounds 5 --brief", name="wrn-TF32"),
    "training": _pair(2, "--data random --epochs 4 --alone --compared 0", name="training"),
    "vocabulary": _benchmark("vocabulary", 1.5, "--platform {platform} --rounds 5 --words 131072"),
    "sweep": _benchmark(
        "sweep", 1.5, f"--students {' '.join(map(str, STUDENTS))} --networks CNN --teachers cached --rounds 5"
    ),
    "article": _benchmark("article", 2, "--platform {platform} --data npz:{mnist} --epochs 2"),
    "pair": _pair(3, "--data npz:{cifar} --epochs 10 --kept {out} --ledger {ledger}", name="pair"),
    # From here on more than 12 minutes are needed.
    "article-whole": _benchmark("article", LONGEST, "--platform {platform} --data npz:{mnist}", name="article-whole"),
    "wrn-all-bfloat16": _wrn("bfloat16", LONGEST, name="wrn-all-bfloat16"),
    "wrn-all-TF32": _wrn("TF32", LONGEST, name="wrn-all-TF32"),
    "profile": _profile("profile"),
    # In CUDA graphs the profiler may not know which operation a library's kernel belongs to.
    "profile-no-graphs": _profile("profile-no-graphs", XLA_FLAGS="--xla_gpu_enable_command_buffer="),
    "sweep-all": _benchmark("sweep", 6, name="sweep-all"),
    "scaling": _benchmark("scaling", LONGEST, "--figures {out}"),
    "tests-float32": _tests(TESTS, "", TRIAL, name="tests-float32", **IN_FLOAT32),
    "tests-bfloat16": _tests(
        TESTS,
        "-k 'float16 or float32 or dtype or precision or bad_points'",
        "tests/test_models.py -k bfloat16",
        name="tests-bfloat16",
    ),
    "losses": _benchmark("losses", 6, "--platform {platform}"),
    "model_compression": _experiment("model_compression", LONGEST, "--data npz:{mnist} --seeds 3"),
    "soft_targets": _experiment("soft_targets", 7, "--data npz:{mnist} --seeds 5"),
    "pipeline": _experiment("pipeline", 7, "--data npz:{mnist} --seeds 3"),
    "strategies": _experiment("strategies", LONGEST, "--seeds 4", "--teacher-epochs 1"),
    "steps": _benchmark("steps", 6, "--apart"),
    "startup": _benchmark("startup", 5),
}
