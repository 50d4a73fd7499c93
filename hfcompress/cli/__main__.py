"""``python -m hfcompress.cli``: as the command ``hfcompress``."""

import sys

from hfcompress.cli import main

sys.exit(main())
