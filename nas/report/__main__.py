"""python -m nas.report RUN_DIR..."""

import sys

from nas.report.page import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
