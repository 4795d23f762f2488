"""``python -m jaxmdn`` is the ``jaxmdn`` command."""

import sys

from jaxmdn.cli import main

if __name__ == "__main__":
    sys.exit(main())
