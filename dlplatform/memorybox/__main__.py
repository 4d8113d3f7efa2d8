"""``python -m dlplatform.memorybox``: a box without the rest of the platform."""

import sys

from dlplatform.errors import PlatformError
from dlplatform.memorybox.server import main

try:
    sys.exit(main())
except PlatformError as error:
    print(f"dlp: error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
