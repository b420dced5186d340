"""`python -m voicegw` is the command `voicegw`."""

import sys

from voicegw.cli import main

if __name__ == "__main__":
    sys.exit(main())
