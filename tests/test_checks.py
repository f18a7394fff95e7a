"""Every bad input of a table is refused by a ValueError that names it; none is taken, none is a bare error."""

import os
import subprocess
import sys
from pathlib import Path


def test_every_bad_input_is_named():
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    script = Path(__file__).with_name("bad_input.py")
    # Of its own process: here jaxtyping's checker would be first.
    done = subprocess.run(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) == 307  # as docs/reliability.md says
