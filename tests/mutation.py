"""Mutation testing: small changes of the code of losses, objectives and training, drawn by a seed, each against its tests.

cosmic-ray makes the changes, of operators, comparisons, numbers and conditions; annotations are left alone. It is no
dependency of the project: `make mutation` installs it. Some 20 minutes of two cores, an hour the first time; a stopped run
goes on where it was.
`--again` asks again about what survived; what was caught stays so, whatever became of its test: delete the record for that.
"""

import argparse
import ast
import datetime
import difflib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import mutation_page
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
PACKAGES = ("losses", "objectives", "training")
SECONDS = 900  # of a processor, for the tests of one change; a change that makes them endless is caught

# The tests of each file: `test_<package>_<file>*`, its docstrings' examples, and these.
ALSO = {
    "losses/_activation_signs": "losses_features",
    "losses/_attention": "losses_features",
    "losses/_bank": "losses_contrastive losses_contrastive_values",
    "losses/_contrastive": "losses_bank",
    "losses/_decoupled": "losses_logits",
    "losses/_distributions": "losses_logits losses_logits_stored",
    "losses/_divergences": "losses_logits",
    "losses/_guided": "losses_logits",
    "losses/_levels": "losses_logits",
    "losses/_linear": "losses_linear losses_linear_sums losses_memory",
    "losses/_math": "losses_features losses_logits losses_logits_stored losses_linear_sums training_masks",
    "losses/_mixtures": "losses_logits losses_linear",
    "losses/_own_labels": "losses_logits",
    "losses/_patterns": "losses_logits",
    "losses/_stored": "losses_logits losses_logits_stored",
    "losses/_token_sums": "losses_linear losses_linear_sums",
    "losses/_tokens": "losses_linear losses_linear_sums losses_memory",
    "losses/_vocabulary": "losses_linear losses_linear_sums losses_memory",
    "losses/_word_sums": "losses_linear losses_linear_sums",
    "objectives/_counted": "objectives_heads training_masks training_masks_refusals",
    "objectives/_hyper_parameters": "objectives_terms",
    "objectives/_terms": "objectives_places training_step",
    "objectives/_weighted_sum": "objectives_terms objectives_places objectives_schedules training_step training_masks "
    "connectors_temperature",
    "objectives/_places": "objectives_terms",
    "objectives/schedules": "objectives_terms training_optimizers_clipping",
    "training/_step": "training_masks training_online training_ways training_sharding connectors_training",
    "training/_axis": "training_ways training_devices connectors_training",
    "training/_asked": "training_accumulation",
    "training/devices": "processes training_masks_refusals",
    "training/loop": "training_evaluation_loop",
    "training/online": "training_ways",
    "training/state": "training_divergence training_online training_optimizers_freezing",
    "training/sweeps": "training_ways",
    "training/views": "data_augmentation caching_views training_ways",
}
# What the table of laws asks of a file's own losses, or of a few of those that use a file without any.
SHARED = {
    "_math": "soft_target_kl or attention_transfer or rkd_distance or pkt or hint or cosine or fsp",
    "_distributions": "soft_target_kl or reverse_kl or jensen_shannon or similarity_distribution or dist",
    "_bank": "crd",
    "_angles": "rkd_angle",
    "_mixtures": "jensen_shannon or skewed_kl",
    "_order": "sorted_probabilities or uskd",
    "_tokens": "linear_",
    "_vocabulary": "linear_",
    "_word_sums": "linear_",
}


def annotations(tree):
    """Where nothing is computed: (first line, column) to (last line, column)."""
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if (found := getattr(node, name, None)) is not None:
                yield (found.lineno, found.col_offset), (found.end_lineno, found.end_col_offset)
        # A type by another name: Trained = X | Y
        if isinstance(node, ast.Assign) and node.col_offset == 0 and isinstance(node.value, ast.BinOp | ast.Subscript):
            yield (node.lineno, 0), (node.end_lineno, node.end_col_offset)


def mutants(path):
    """(place, operator, number of its occurrence) of every change that cosmic-ray knows to make in the file."""
    code = path.read_text()
    spans = [*annotations(ast.parse(code))]
    tree = get_ast(code)
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or name == "core/RemoveDecorator":
            continue
        places = [place for node in ast_nodes(tree) for place in operator().mutation_positions(node)]
        for number, (start, _) in enumerate(places):
            if not any(first <= start < last for first, last in spans):
                yield start, name, number


def sample(count, seed):
    """`count` changes, each at another place: operators with many forms weigh no more than a number does.

    A place is drawn by its own line's text, so that a change of the code elsewhere leaves the others in the sample.
    """
    by_place = {}
    for package in PACKAGES:
        for path in sorted((ROOT / "kdjax" / package).glob("*.py")):
            if path.name != "__init__.py":
                lines, name_of = path.read_text().splitlines(), path.relative_to(ROOT / "kdjax")
                for (line, column), name, number in mutants(path):
                    before = lines[: line - 1].count(lines[line - 1])
                    place = f"{seed} {name_of} {before} {column} {lines[line - 1]}"
                    by_place.setdefault(place, []).append((name_of, name, number))
    places = sorted(by_place, key=lambda place: hashlib.sha256(place.encode()).digest())[:count]
    return [random.Random(place).choice(by_place[place]) for place in places]


def tests_of(path):
    """Arguments of pytest, for one run after another."""
    own, package = path.stem.strip("_"), path.parent.name
    also = ALSO.get(str(path.with_suffix("")), "").split()
    names = [*sorted(file.stem for file in (ROOT / "tests").glob(f"test_{package}_{own}*.py"))]
    names += [f"test_{name}" for name in also if f"test_{name}" not in names]
    runs = [[f"tests/{name}.py" for name in names]] if names else []
    module = f"kdjax.{package}.{path.stem}"
    runs.append([f"tests/test_doctests.py::test_examples_in_docstrings[{module}]"])
    if package == "losses":
        public = re.findall(r"\w+", (ROOT / "kdjax" / "losses" / "__init__.py").read_text())
        tree = ast.parse((ROOT / "kdjax" / path).read_text())
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in public]
        if not functions and path.stem not in SHARED:
            sys.exit(f"SHARED must name losses that use {path}, which has none of its own.")
        table = [f"tests/test_losses{name}.py" for name in ("", "_errors", "_special")]
        runs.insert(0, [*table, "-k", SHARED.get(path.stem, " or ".join(functions))])
    return runs


def changed(path, name, number):
    """The file's text with the change, and the two lines that tell it."""
    code = (ROOT / "kdjax" / path).read_text()
    new = mutate_code(code, get_operator(name)(), number)
    lines = difflib.unified_diff(code.splitlines(), new.splitlines(), n=0, lineterm="")
    return new, [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


def caught(tree, path, text, programs):
    """Which test fails first, in a copy of the tree of its own, once the file says `text`; None: all pass."""
    file = tree / "kdjax" / path
    original = file.read_text()
    file.write_text(text)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow"]
    data = os.environ.get("KDJAX_TEST_DATA", str(ROOT.parent / "shared" / "data"))
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(programs), "KDJAX_TEST_DATA": data}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree)}
    settings = {"cwd": tree, "env": environment, "capture_output": True, "text": True}
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_CPU, (SECONDS, SECONDS + 60))
    asked = False
    try:
        for tests in tests_of(path):
            done = subprocess.run([*command, *tests], **settings, preexec_fn=limit, timeout=20 * SECONDS)
            if done.returncode in (1, 2, 4) or -done.returncode == signal.SIGXCPU:
                first = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
                return first[1] if first else f"pytest ended with {done.returncode}"
            if done.returncode not in (0, 5):  # 5: nothing was asked
                raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
            asked |= done.returncode == 0
    except subprocess.TimeoutExpired:
        return "it waited without end"
    finally:
        file.write_text(original)
    if not asked:
        raise RuntimeError(f"No test was asked about {path}; ALSO or SHARED must name some.")
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=210)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="ask the tests again of those that survived")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "mutation_run.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "mutation-testing.md")
    options = parser.parse_args()
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    known = kept.get("mutants", [])
    reasons = {
        (one["file"], *one["change"]): {"why": one["why"], "changes": one["changes"]} for one in known if "why" in one
    }
    if options.again:
        known = [one for one in known if one["caught"]]
    drawn = sample(options.count, options.seed)
    of_sample = {(str(one[0]), *changed(*one)[1]) for one in drawn}
    known = [one for one in known if (one["file"], *one["change"]) in of_sample]
    done = {(one["file"], *one["change"]) for one in known}
    with tempfile.TemporaryDirectory() as scratch:
        trees = Queue()
        tracked = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        for number in range(options.workers):
            tree = Path(scratch) / str(number)
            for name in tracked:
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, tree / name)
            trees.put(tree)
        programs = ROOT / ".cache" / "mutation"  # a run that goes on reads what it has compiled before

        def run(path, text):
            tree = trees.get()
            try:
                return caught(tree, path, text, programs)
            finally:
                trees.put(tree)

        def one(path, name, number):
            text, lines = changed(path, name, number)
            by = run(path, text)
            found = {"by": by} if by else reasons.get((str(path), *lines), {})
            return {"file": str(path), "change": lines, "caught": by is not None} | found

        left = [mutant for mutant in drawn if (str(mutant[0]), *changed(*mutant)[1]) not in done]
        with ThreadPoolExecutor(options.workers) as pool:
            # Unchanged, all tests must pass; and their programs are compiled.
            paths = sorted({path for path, *_ in left})
            texts = [(ROOT / "kdjax" / path).read_text() for path in paths]
            for path, fails in zip(paths, pool.map(run, paths, texts), strict=True):
                if fails:
                    sys.exit(f"the tests of {path} fail as it is: {fails}")
            for result in pool.map(lambda mutant: one(*mutant), left):
                known.append(result)
                record = kept | {"about": about(options.seed), "mutants": known}
                options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
                print(
                    len(known),
                    "caught  " if result["caught"] else "SURVIVED",
                    result["file"],
                    *result["change"],
                    sep="  ",
                )
    options.page.write_text(mutation_page.page(json.loads(options.out.read_text())))


def about(seed):
    """What the page says of the run."""
    names = {"jax": "jax", "cosmic-ray": "cosmic_ray"}
    versions = [f"{name} {importlib.metadata.version(module)}" for name, module in names.items()]
    software = ", ".join([f"Python {platform.python_version()}", *versions, f"seed {seed}"])
    return {"date": f"{datetime.date.today()}", "software": software}


if __name__ == "__main__":
    main()
