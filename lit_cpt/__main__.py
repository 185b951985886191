"""`python -m lit_cpt` and the `lit-cpt` command."""

import sys

from lit_cpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
