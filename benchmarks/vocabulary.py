"""What do losses over a vocabulary cost beside the same loss of logits that are all there?

python benchmarks/vocabulary.py --out vocabulary.json

Memory by XLA's analysis of the compiled program, value and gradients of the student's hidden states and head, at 8,192
tokens of 1,024 dims in bfloat16, over vocabularies from 8,192 to 262,144 words; nothing of it is run. Time, in float32 and
in turns with the plain form: 2,048 tokens of 256 dims, the teacher's of 512, and 32,768 words.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import jax
import jax.numpy as jnp
from _command_line import command_line
from _memory import by_xla
from _script import Report, Settings, quartiles, spread, verdict
from _turns import in_turns

from kdjax import losses

PLAIN: dict[str, Callable[..., Any]] = {
    "soft_target_kl": partial(losses.soft_target_kl, temperature=1.0),
    "reverse_kl": losses.reverse_kl,
    "jensen_shannon": losses.jensen_shannon,
}
WORDS = tuple(2**power for power in range(13, 19))
LIMITS = {"linear": 1.6, "weighted": 1.1}
"""Of the Kullback–Leibler divergences' time, in multiples of the plain form's: each head's product is made twice, 275 GFLOP
for 172, but where the weights are known before."""
LIMIT_MB = 1400.0
"""Of temporary space at 131,072 words."""


@dataclass(frozen=True)
class Benchmark(Settings):
    """What losses over a vocabulary cost."""

    LEAST: ClassVar = {"rounds": 3}
    rounds: int = 7
    """how often every case has its turn"""
    words: tuple[int, ...] = WORDS
    """sizes of the vocabulary whose memory is asked for"""
    platform: Literal["cpu", "cuda"] = "cpu"
    """what computes"""


def main(settings: Benchmark) -> None:
    jax.config.update("jax_platforms", settings.platform)
    report = Report(settings)
    with report.console.status("memory"):
        memory = [
            {"loss": name, "words": words} | by_xla(_compiled(loss, _shapes(8192, 1024, 1024, words, jnp.bfloat16)))
            for words in (WORDS[:2] if settings.quick else settings.words)
            for name, loss in _pairs()
        ]
    with report.console.status("time"):
        times = _times(
            256 if settings.quick else 2048,
            4096 if settings.quick else 32_768,
            3 if settings.quick else settings.rounds,
        )
    targets = [
        {
            "what": f"time of {row['loss']} / plain",
            "is": row["quartiles_ratio"][1],
            "limit": LIMITS[row["loss"].partition("_")[0]],
        }
        for row in times
        if row["loss"].endswith("_kl")
    ]
    targets += [
        {"what": f"MB of {row['loss']}", "is": row["temporary_mb"], "limit": LIMIT_MB}
        for row in memory
        if row["words"] == 131_072 and row["loss"].startswith("linear")
    ]
    targets = [target | {"met": target["is"] <= target["limit"]} for target in targets]
    _print(report, memory, times, targets)
    report.write(memory=memory, times=times, targets=targets)


def _pairs() -> list[tuple[str, Callable[..., Any]]]:
    """The plain form of each loss, then ours: one number a token, and the sum with weights that are known before."""
    found: list[tuple[str, Callable[..., Any]]] = []
    for name, plain in PLAIN.items():
        found += [
            (name, partial(_of_logits, plain)),
            (f"linear_{name}", getattr(losses, f"linear_{name}")),
            (f"weighted_{name}", partial(_mean, plain)),
        ]
    return found


def _of_logits(loss: Callable[..., Any], hidden: Any, head: Any, its: Any, its_head: Any) -> Any:
    return loss(hidden @ head, its @ its_head)


def _mean(loss: Callable[..., Any], hidden: Any, *others: Any) -> Any:
    return losses.linear_weighted_sum(loss, jnp.full(hidden.shape[:1], 1 / len(hidden)), hidden, *others)


def _shapes(tokens: int, dim: int, teacher_dim: int, words: int, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    shapes = (tokens, dim), (dim, words), (tokens, teacher_dim), (teacher_dim, words)
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]


def _compiled(loss: Callable[..., Any], shapes: list[jax.ShapeDtypeStruct]) -> jax.stages.Compiled:
    mean = jax.value_and_grad(lambda *arrays: jnp.mean(loss(*arrays)), argnums=(0, 1))
    return jax.jit(mean).lower(*shapes).compile()


def _times(tokens: int, words: int, rounds: int) -> list[dict[str, Any]]:
    shapes = _shapes(tokens, 256, 512, words, jnp.float32)
    draws = [jax.random.normal(jax.random.key(seed), one.shape) for seed, one in enumerate(shapes)]
    arrays = [draw / draw.shape[0] ** 0.5 if number % 2 else draw for number, draw in enumerate(draws)]
    runs = {name: partial(_calls, _compiled(loss, shapes), arrays) for name, loss in _pairs()}
    of_each = in_turns(runs, 0.0, rounds)
    return [
        {
            "loss": f"{form}_{name}",
            "plain_ms": of_each[name],
            "ours_ms": of_each[f"{form}_{name}"],
            "quartiles_ratio": quartiles(
                ours / plain for ours, plain in zip(of_each[f"{form}_{name}"], of_each[name], strict=True)
            ),
        }
        for name in PLAIN
        for form in LIMITS
    ]


def _calls(compiled: jax.stages.Compiled, arrays: list[Any], count: int) -> None:
    for _ in range(count):
        jax.block_until_ready(compiled(*arrays))


def _print(
    report: Report, memory: list[dict[str, Any]], times: list[dict[str, Any]], targets: list[dict[str, Any]]
) -> None:
    by = {(row["loss"], row["words"]): row["temporary_mb"] for row in memory}
    sizes = sorted({words for _, words in by})
    report.table(
        "MB of temporary space by XLA: value and gradients, 8,192 tokens × 1,024 dims, bfloat16",
        ("", *(f"{words:,}" for words in sizes)),
        [(name, *(f"{by[name, words]:,.0f}" for words in sizes)) for name, _ in _pairs()],
    )
    report.table(
        "Time: ms, median over the rounds (quartiles)",
        ("", "plain", "ours", "ratio in turns"),
        [
            (
                row["loss"],
                *(spread(quartiles(row[who])) for who in ("plain_ms", "ours_ms")),
                spread(row["quartiles_ratio"]),
            )
            for row in times
        ],
    )
    report.table(
        "Targets",
        ("target", "is", "limit", ""),
        [(row["what"], f"{row['is']:.2f}", f"≤ {row['limit']:.2f}", verdict(row["met"])) for row in targets],
    )


if __name__ == "__main__":
    main(command_line(Benchmark, __doc__))
