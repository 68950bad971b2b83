"""`python -m mlxhog` is the command line."""

import sys

from mlxhog.cli import main

sys.exit(main())
