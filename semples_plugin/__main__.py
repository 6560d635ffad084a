"""`python -m semples_plugin` is `semples`."""

import sys

from semples_plugin.cli.app import main

sys.exit(main())
