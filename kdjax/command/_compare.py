"""``kdjax compare``: teacher, student alone and student distilled, over seeds."""

from pathlib import Path

from kdjax.command._settings import Compare


def compare(settings: Compare) -> int:
    """Trains, compares, and names the report."""
    from rich.console import Console

    from kdjax import runs
    from kdjax.command import _networks, _recipes
    from kdjax.runs.stopping import say

    console = Console()
    beside = "with" if settings.online else "from"
    named = f"{settings.student}-{beside}-{'-'.join(settings.teacher)}".replace(":", ".")
    out = settings.out or Path("runs") / named
    if settings.resume and not out.exists():
        raise ValueError(f"--resume needs a run to go on with; there is no folder {out}.")
    for name in {*settings.teacher, settings.student}:
        if ":" in name:
            _networks.imported(name)  # before the data are, which may take long
    data = _recipes.loaded(settings)
    # Of a path `compare` reads too what the teacher was trained on.
    one = len(settings.given_teacher) == 1
    _recipes.check_descriptions(settings, data)
    given = settings.given_teacher[0] if one else _recipes.given_weights(settings, data)
    try:
        with runs.stopped_by_signals() as stop:
            runs.compare(
                out,
                data=data,
                preprocess=_recipes.preprocess_of(data),
                given_teacher=given,
                **_recipes.recipes(
                    settings, data, lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
                ),
                seeds=settings.seeds,
                resume=settings.resume,
                devices=settings.devices,
                dtype=settings.dtype,
                diverged=settings.diverged,
                config=settings.recorded(),
                title=f"{settings.student} {beside} {'+'.join(settings.teachers)}",
                print_every=settings.print_every,
                console=console,
                stop=stop,
            )
    except runs.StoppedError as stopped:
        say(f"kdjax: {stopped} The same command with --resume goes on from there.")
        return stopped.code
    return 0
