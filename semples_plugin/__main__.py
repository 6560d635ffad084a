"""`python -m semples_plugin` is `semples`."""

import sys

from semples_plugin.cli.main import main

sys.exit(main())
