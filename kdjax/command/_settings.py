"""What several commands have, and how the settings of a comparison are written down and read again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from kdjax import _checks
from kdjax.command._networks import check_name

MADE_BY = "kdjax compare"


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command has."""

    debug: bool = False
    """show an error's traceback"""

    def __post_init__(self) -> None:
        """Expands all paths: a shell does it with ``--out ~/run``, and not with ``--out=~/run``."""
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Path):
                object.__setattr__(self, one.name, expanded(value))
            elif isinstance(value, tuple):
                each = tuple(expanded(path) if isinstance(path, Path) else path for path in value)
                object.__setattr__(self, one.name, each)


@dataclass(frozen=True, kw_only=True)
class Compare(Common):
    """Train a teacher, a student alone, and the same student with the teacher; then compare them, and write a report."""

    teacher: tuple[str, ...] = ()
    """the teacher's network: cnn_tiny, cnn_small, cnn, cnn_large, or a wide residual network of depth and width such as
    wrn_40_2; or one's own, MODULE:FUNCTION, which is imported and called with classes=…; again for each of several teachers,
    which must be given"""
    student: str
    """the student's network, such as wrn_16_2 or my_networks:small"""
    data: str
    """digits, mnist, fashion_mnist, tfds:NAME, idx:DIR, npz:FILE, npy:DIR or folder:DIR, which holds train/CLASS/any.png and
    test/CLASS/any.png"""
    data_dir: Path | None = None
    """folder with the original files of mnist or fashion_mnist, or with prepared TFDS data sets"""
    size: int | None = None
    """height and width in pixels to which the pictures of folder:DIR are brought"""
    channels: int | None = None
    """1 makes the pictures of folder:DIR grey, 3 makes them RGB"""
    out: Path | None = None
    """the run's folder; default runs/STUDENT-from-TEACHER"""
    resume: bool = False
    """go on with the run in --out, from where it was stopped"""
    seeds: int = 3
    """how often everything is repeated, with seeds 0, 1, 2, …"""
    epochs: int = 30
    """passes over the training data, for each network"""
    teacher_epochs: int | None = None
    """passes for the teacher, where they are not --epochs"""
    batch_size: int = 64
    """examples an update"""
    learning_rate: float = 1e-3
    """Adam's, per update, at the start; a cosine takes it to 0 at the end"""
    loss: Literal["kl", "mse"] = "kl"
    """what the student learns from the teacher: kl, its soft targets at a temperature; mse, its logits"""
    temperature: str | None = None
    """T of the soft targets, for kl; default 4. START:END goes from one to the other over all updates in a straight line,
    START:END:cosine in half a cosine wave"""
    alpha: str = "0.3"
    """weight of the labels, from 0 to 1; the teacher weighs 1 − alpha. START:END and START:END:cosine as above"""
    online: bool = False
    """teacher and student learn together from the start, each from the labels and from the other as it is then; the teacher
    that is trained before is only compared"""
    start: str = "scratch"
    """the student's first weights, alone and with the teacher: scratch; teacher, what fits of the --given-teacher; or a path
    of saved weights of the same network"""
    given_teacher: tuple[Path, ...] = ()
    """saved weights of the teacher, RUN/seed-0/teacher/weights, for every seed; none is trained. Several are an ensemble"""
    devices: int | Literal["all"] = 1
    """over how many devices each batch is split"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """what the networks compute in; weights and losses are float32"""
    diverged: Literal["stop", "skip", "lower_rate"] = "stop"
    """where training diverges: stop; skip, leave out updates that are not finite; lower_rate, begin the epoch anew with a
    tenth of the learning rate, three times at most"""
    print_every: int = 1
    """print a line each so many epochs; 0: only after the last"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in STARTS:
            object.__setattr__(self, "start", str(expanded(Path(self.start))))
        if not self.teacher:
            raise ValueError("--teacher must be given; kdjax compare --help says what it may be.")
        for name in self.teacher:
            check_name("--teacher", name)
        check_name("--student", self.student)
        for name in ("seeds", "epochs", "batch_size"):
            _checks.whole(option(name), getattr(self, name), 1)
        if self.teacher_epochs is not None:
            _checks.whole("--teacher-epochs", self.teacher_epochs, 1)
        _checks.positive("--learning-rate", self.learning_rate)
        if self.temperature is not None and self.loss != "kl":
            raise ValueError(f"--temperature is of --loss kl; {self.loss} has none.")
        several = max(len(self.teacher), len(self.given_teacher))
        if several > 1 and (len(self.teacher) not in (1, several) or len(self.given_teacher) != several):
            raise ValueError(
                "--given-teacher must be named once for each of several teachers, which are trained before, one by one; "
                f"got {len(self.teacher)} of --teacher and {len(self.given_teacher)} of --given-teacher."
            )
        if self.online and self.given_teacher:
            raise ValueError(
                "--online trains its own teacher beside the student; got --given-teacher "
                f"{self.given_teacher[0]}, which would teach nothing. Leave out one of them."
            )
        if self.start == "teacher" and len(self.given_teacher) != 1:
            raise ValueError(
                "--start teacher needs one teacher that is trained already: --given-teacher RUN/seed-0/teacher/weights; "
                f"got {len(self.given_teacher)}."
            )

    @property
    def teachers(self) -> tuple[str, ...]:
        """The networks of all teachers."""
        return self.teacher if len(self.teacher) > 1 else self.teacher * max(len(self.given_teacher), 1)

    def recorded(self) -> dict[str, Any]:
        """All that makes the run, as JSON can hold it; paths from the root, so that it can be read from anywhere."""
        own = {key: value for key, value in asdict(self).items() if key not in NOT_RECORDED}
        own |= {
            key: None if value is None else str(Path(value).absolute())
            for key, value in own.items()
            if key in ("data_dir",)
        }
        own["given_teacher"] = [str(path.absolute()) for path in self.given_teacher]
        own["start"] = self.start if self.start in STARTS else str(Path(self.start).absolute())
        own["data"] = whole_source(self.data)
        if not self.online:
            del own["online"]  # which runs of before it do not name
        return own | {"made_by": MADE_BY}


STARTS = ("scratch", "teacher")
# What the run itself records, or what makes no difference to it.
NOT_RECORDED = ("debug", "out", "resume", "seeds", "dtype", "diverged", "print_every")


def option(name: str) -> str:
    """A field's name as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def expanded(path: Path) -> Path:
    """With the home folder in the place of ``~``."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{path} must begin with somebody's home folder, or be a whole path where ~ is of the name: {error}"
        ) from error


def whole_source(source: str) -> str:
    """The data's source with its path, if it has one, from the root."""
    kind, colon, argument = source.partition(":")
    return f"{kind}:{expanded(Path(argument)).absolute()}" if colon and kind != "tfds" else source


def settings_of(config: Mapping[str, Any], where: Path, data: str | None = None) -> Compare:
    """Read again from a run's config.json; `data` stands in the place of the recorded source.

    Raises:
      ValueError: if the run was not made by this command, or its record is damaged.
    """
    if config.get("made_by") != MADE_BY:
        raise ValueError(f"run must be the folder of a run of `{MADE_BY}`; {where} is of another program.")
    known = {one.name for one in fields(Compare)}
    own: dict[str, Any] = {key: value for key, value in config.items() if key in known}
    try:
        own["teacher"] = tuple(own["teacher"])
        own["given_teacher"] = tuple(map(Path, own["given_teacher"]))
        own["data_dir"] = None if own["data_dir"] is None else Path(own["data_dir"])
        own["data"] = data or own["data"]
        return Compare(**own)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{where} must hold a run's settings, as the run wrote them; it is damaged: {error!r}."
        ) from error
