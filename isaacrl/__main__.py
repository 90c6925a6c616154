"""`python -m isaacrl`."""

import sys

from isaacrl.cli import main

sys.exit(main())
