"""Shapes in signatures are checked, warnings and rank promotion are errors, four devices exist: for every test."""

import gc
import os
import re
import sys
from pathlib import Path

import compiler
import jax
import jaxlib
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook
from xdist.scheduler import LoadScopeScheduling

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The hook must stand before the first import of kdjax: it rewrites modules as they are loaded.
install_import_hook("kdjax", "beartype.beartype")
from kdjax import losses  # noqa: E402
from kdjax.testing import _calling  # noqa: E402

# Compiling takes what it takes: a slow machine is no failure.
PATIENT = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=30, **PATIENT)
# A loss has three properties at least: 10,200 examples.
settings.register_profile("slow", max_examples=3_400, **PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

# Real data lies beside a checkout or where KDJAX_TEST_DATA says; tests that want it skip where it is missing.
DATA = Path(os.environ.get("KDJAX_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_configure(config):
    """The slow tests and the verification report take the compiler as users have it, and so does whoever sets XLA_FLAGS."""
    slow = config.option.markexpr == "slow" or os.environ.get("HYPOTHESIS_PROFILE") == "slow"
    # A release that knew a flag no more would end the process.
    if not slow and jaxlib.__version__.startswith("0.10."):
        os.environ.setdefault("XLA_FLAGS", compiler.QUICK)
    _calling.COMPILER_OPTIONS.update(compiler.careful_options())


class _WholeFiles(LoadScopeScheduling):
    """One worker has a whole file, and makes its fixtures and programs once.

    The laws of the losses are the longest file: a worker has all that is asked of one loss, which shares a program.
    """

    def _split_scope(self, nodeid):
        file, _, test = nodeid.partition("::")
        if not file.endswith("test_losses.py"):
            return file
        return next((name for name in re.split(r"[\[\]-]", test) if name in losses.__all__), file)


@pytest.hookimpl(optionalhook=True)  # where xdist is off there is none
def pytest_xdist_make_scheduler(config, log):
    return _WholeFiles(config, log)


def pytest_collection_finish():
    """What is alive before the first test lives to the end: the collector need not look through it again and again."""
    gc.collect()
    gc.set_threshold(50_000)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    folder = DATA / "mnist"
    if not (folder / "train-images-idx3-ubyte.gz").exists():
        pytest.skip(f"needs the original MNIST files, and {folder} does not hold them")
    return folder


@pytest.fixture(scope="session")
def fashion_mnist_dir() -> Path:
    folder = DATA / "fashion_mnist"
    if not (folder / "train-images-idx3-ubyte.gz").exists():
        pytest.skip(f"needs the original Fashion-MNIST files, and {folder} does not hold them")
    return folder


@pytest.fixture(scope="session")
def cifar10_pictures() -> Path:
    archive = DATA / "cifar10_jpeg75.zip"
    if not archive.exists():
        pytest.skip(f"needs CIFAR-10 as JPEG pictures, and {archive} does not exist")
    return archive


@pytest.fixture(autouse=True, scope="session")
def no_program_is_compiled_twice(tmp_path_factory):
    """Compiling is most of the work: what one module, worker or process has compiled in this run the others only read."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    for name, value in {
        "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(shared / "programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_traceback_in_locations_limit": 0,  # who called what is a quarter of the time of lowering
    }.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for the processes that tests start


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_module_at_a_time():
    """All compiled programs of all tests together are gigabytes, and every test after them is slower for it."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def comparisons_write_no_report(request):
    """But where reports are tested: each takes seconds, as long as the comparison itself."""
    module = sys.modules.get("kdjax.runs.compare")
    if module is None or request.module.__name__.split(".")[-1].startswith(("test_docs", "test_runs_report")):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "report_at_end", lambda *run: "No report: this is a test.")
        yield


@pytest.fixture
def compiled_as_users_do(monkeypatch):
    """What `jax.jit` is given from here on is compiled with all optimisation: for laws of the last bit."""
    jit = jax.jit

    def as_users_do(*given, compiler_options=None, **settings):
        options = compiler.AS_USERS_HAVE_IT | (compiler_options or {})  # of a network that asks for some, those too
        return jit(*given, compiler_options=options, **settings)

    monkeypatch.setattr(jax, "jit", as_users_do)
