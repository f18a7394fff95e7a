"""A byte-level language model teaches a smaller one, on the source of Python's own standard library.

    python experiments/tokens.py

Three divergences between the same teacher and the same student: forward KL, reverse KL and Jensen–Shannon, each beside the
labels; perplexity of the bytes of modules that no network was trained on.
"""

import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optax

from experiments._settings import Settings, run, start
from experiments._transformers import LanguageModel
from kdjax import cross_entropy, on_logits, weighted_sum
from kdjax.losses import jensen_shannon, reverse_kl, soft_target_kl
from kdjax.metrics import Measure, accuracy, perplexity
from kdjax.networks import from_linen
from kdjax.runs import Recipe

DIVERGENCES = {"forward-kl": soft_target_kl, "reverse-kl": reverse_kl, "jensen-shannon": jensen_shannon}
BITS = Measure(cross_entropy, lambda sums, count: float(sums / count / np.log(2)), lower_is_better=True)
MEASURES = {"perplexity": perplexity, "bits per byte": BITS, "accuracy": accuracy}


@dataclass(frozen=True)
class Tokens(Settings):
    """A causal transformer of a million parameters and one of a fifth of that."""

    data: str = "python"
    """the text: windows drawn from all modules of the standard library; every tenth module's are the test's"""
    seeds: int = 8
    """how often each student is trained, with seeds 0, 1, 2, …; one teacher serves all"""
    print_every: int = 0
    """print a line each so many epochs; 0: only after the last"""
    time: int = 64
    """bytes a window"""
    windows: int = 4096
    """windows of training text"""
    teacher_epochs: int = 6
    """passes over the training text, for the teacher"""
    epochs: int = 1
    """passes over the training text, for each student"""
    batch_size: int = 16
    """windows an update"""
    learning_rate: float = 2e-3
    """Adam's, per update, at the start; a cosine takes it to 0 at the end"""
    alpha: float = 0.3
    """weight of the labels; the divergence weighs 1 − alpha"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, own in (("data", "python"), ("data_dir", None), ("size", None)):
            if getattr(self, name) != own:
                raise ValueError(
                    f"{name} must be left out: the text is Python's standard library; got {getattr(self, name)!r}."
                )


def text(settings: Tokens) -> list[dict[str, np.ndarray]]:
    """The windows to train on and to test on: each byte's label is the next one."""
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    found = []
    for test in (False, True):
        chosen = [module for number, module in enumerate(modules) if (number % 10 == 9) == test]
        whole = np.frombuffer(b"".join(module.read_bytes() for module in chosen), np.uint8).astype(np.int32)
        length = settings.time + 1
        windows = whole[: len(whole) // length * length].reshape(-1, length)
        drawn = np.random.default_rng(test).permutation(len(windows))[: max(1, settings.windows // (4 if test else 1))]
        found.append({"inputs": windows[drawn, :-1], "labels": windows[drawn, 1:]})
    return found


def main(settings: Tokens) -> None:
    data, labels = text(settings), weighted_sum(labels=(1.0, cross_entropy))

    def recipe(width, layers, objective, epochs):
        def optimizer(updates):
            return optax.adam(optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, updates // 20, updates))

        network = from_linen(LanguageModel(width, layers, heads=4))
        return Recipe(
            network,
            objective,
            optimizer,
            epochs,
            settings.batch_size,
            name=f"transformer {layers} × {width}",
            learning_rate=settings.learning_rate,
        )

    teacher, alone = recipe(160, 3, labels, settings.teacher_epochs), recipe(80, 2, labels, settings.epochs)
    for name, divergence in DIVERGENCES.items():
        soft = on_logits(divergence, temperature=1.0)
        both = weighted_sum(labels=(settings.alpha, cross_entropy), soft=(1.0 - settings.alpha, soft))
        recipes = {"teacher": teacher, "alone": alone, "distilled": recipe(80, 2, both, settings.epochs)}
        folder = run("tokens", settings, data, part=name, measures=MEASURES, one_teacher=True, **recipes)
        settings = replace(settings, teacher=settings.teacher or folder / "seed-0" / "teacher" / "weights")


if __name__ == "__main__":
    start(main, Tokens, __doc__)
