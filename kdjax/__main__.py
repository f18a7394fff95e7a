"""``python -m kdjax``: the command `kdjax`, also where its script is not on the path."""

import sys

from kdjax.command import main

if __name__ == "__main__":
    sys.exit(main())
