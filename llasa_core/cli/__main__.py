"""`python -m llasa_core.cli`, the same as `llasa`."""

import sys

from llasa_core.cli import main

sys.exit(main())
