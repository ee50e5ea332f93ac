"""`morphogen`, and `python -m morphogen`."""

import os
import sys

from .cli import main


def run() -> None:
    """Run the command line of this process, and end it."""
    code = main()
    if "WORLD_SIZE" in os.environ:  # perhaps one of several processes
        from .parallel import end

        end(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
