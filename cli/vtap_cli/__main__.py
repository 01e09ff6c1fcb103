"""`python -m vtap_cli` is `vtap`."""

import sys

from vtap_cli.main import main

sys.exit(main())
