"""From words to a command, and from what goes wrong to one sentence and an exit code."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Union

from kdjax.command import _doctor, _packages

STOPPED = 130  # what a shell gives to a program that Ctrl-C has ended
# What people can mend: their words, their files, their data, their machine. All else is a fault of ours, with a traceback.
EXPECTED = (ValueError, OSError, ImportError, FloatingPointError, MemoryError, RuntimeError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command ``kdjax``.

    Args:
      argv: its words, without its own name; None: those that the process was started with.

    Returns:
      The exit code: 0; 1 after an error, which is said on standard error in a sentence, with a traceback by ``--debug``;
      75 where SIGTERM has stopped a comparison, which is saved and can be gone on with; 130 where Ctrl-C has.

    Raises:
      SystemExit: of code 0 after ``--help``, and of code 2 where the words make no command.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words == ["doctor"]:  # even where tyro is what is missing
            return _doctor.doctor()
        return _run(words)
    except KeyboardInterrupt:
        print("kdjax: stopped. The same command with --resume goes on with a comparison.", file=sys.stderr)
        return STOPPED
    except EXPECTED as error:
        if "--debug" in words:
            raise
        said = _packages.missing(error) if isinstance(error, ImportError) else None
        print(f"kdjax: error: {said or str(error) or type(error).__name__}", file=sys.stderr)
        return 1


def _run(words: Sequence[str]) -> int:
    import tyro

    from kdjax.command._compare import compare
    from kdjax.command._doctor import Doctor
    from kdjax.command._export import Export, export
    from kdjax.command._report import Report, report
    from kdjax.command._settings import Compare
    from kdjax.command._verify import Verify, verify

    commands: dict[type, Any] = {
        Compare: compare,
        Report: report,
        Verify: verify,
        Export: export,
        Doctor: lambda settings: _doctor.doctor(),
    }
    named: Any = Union[tuple(Annotated[kind, tyro.conf.subcommand(kind.__name__.lower())] for kind in commands)]  # noqa: UP007
    settings: Any = tyro.cli(
        named,
        prog="kdjax",
        args=words,
        description="Knowledge distillation for JAX: train a small network to do what a large one does.",
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes, tyro.conf.UseAppendAction),
    )
    code: int = commands[type(settings)](settings)
    return code
