"""`python -m flatminima` is the command `flatminima`."""

import sys

from flatminima.cli import main

if __name__ == "__main__":
    sys.exit(main())
