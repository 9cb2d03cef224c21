"""The dispatcher as a process. Nothing is imported before it is needed: Dask's workers import this module again."""

import sys

if __name__ == "__main__":
    from eorouter.jobs.dispatcher import main

    sys.exit(main(sys.argv[1:]))
