"""`python -m morphogen`."""

import os
import sys

from .cli import main

if __name__ == "__main__":
    code = main()
    if "WORLD_SIZE" in os.environ:  # perhaps one of several processes
        from .parallel import end

        end(code)
    sys.exit(code)
