"""The words of a command line as tests/fuzz.py feeds them: to `kdjax`, and to the scripts of experiments/."""

import contextlib
import io
import shlex
from importlib import import_module

import tyro

from kdjax.command import main

WORDS = [
    b"compare --teacher cnn_tiny --student cnn_tiny --data npz:/nowhere --epochs 2 --temperature 4:1:cosine --alpha 0.3",
    b"report runs/x", b"verify runs/x --tolerance 1e-5 --devices all", b"export runs/x --format onnx --seed 3", b"doctor",
    b"compare --student wrn_16_2 --teacher wrn_40_2 --data folder:/nowhere --size 8 --channels 3 --dtype bfloat16",
]  # fmt: skip


def run_command(folder, content):
    """`kdjax` with any words, in process; a traceback is what must not be."""
    try:
        words = shlex.split(content.decode())
    except ValueError:
        words = content.decode(errors="replace").split()
    words = [word for word in words if word not in ("digits", "doctor", "--debug")]  # would train, or write elsewhere
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = main(words)
        except SystemExit as stopped:
            code = stopped.code
    assert code in (0, 1, 2), code


SCRIPTS = {
    "common_mistakes": "CommonMistakes", "digits": "Digits", "many_labels": "ManyLabels", "pipeline": "Pipeline",
    "model_compression": "ModelCompression", "pixels": "Pixels", "precision": "Precision", "search": "Search",
    "soft_targets": "SoftTargets", "strategies": "Strategies", "tokens": "Tokens", "transformers": "Transformers",
}  # fmt: skip
MORE_WORDS = [
    b"digits --data digits --seeds 2 --epochs 3 --learning-rate 1e-3 --temperature 4 --alpha 0.3 --cache auto",
    b"search --temperatures 1 4 --alphas 0.1 0.9 --way vmap --seeds 2", b"strategies --only kl --resume --out x",
]  # fmt: skip


def read_script_words(folder, content):
    """The settings of a script of experiments/, which checks them before it does anything."""
    words = content.decode(errors="replace").split()
    name = words[0] if words and words[0] in SCRIPTS else "digits"
    settings = getattr(import_module(f"experiments.{name}"), SCRIPTS[name])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            tyro.cli(settings, args=words[1:])
        except SystemExit as stopped:
            assert stopped.code in (0, 2), stopped.code  # noqa: PT017
