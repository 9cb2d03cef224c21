"""Named moments at which a test may stop a process, to kill exactly there. Outside of such tests they do nothing.

With the environment variable `EOR_FAULTS` naming a folder, a process that comes to a moment of which a file
`<moment>.armed` lies there takes that file for its own (`<moment>.<process id>`) and waits until it is gone.
"""

import os
import time
from pathlib import Path

VARIABLE = "EOR_FAULTS"
_WAIT_S = 120.0
_folder = os.environ.get(VARIABLE)


def reached(moment: str) -> None:
    """Say that this process has come to a moment."""
    if _folder is not None:
        _stand_still(Path(_folder), moment)


def _stand_still(folder: Path, moment: str) -> None:
    mine = folder / f"{moment}.{os.getpid()}"
    try:
        (folder / f"{moment}.armed").rename(mine)
    except FileNotFoundError:
        return
    end = time.monotonic() + _WAIT_S
    while mine.exists() and time.monotonic() < end:
        time.sleep(0.005)
