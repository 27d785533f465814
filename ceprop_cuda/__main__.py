"""``python -m ceprop_cuda`` is ``ceprop``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
