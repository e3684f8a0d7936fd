"""Arrays that took minutes to compute, kept on disk for the next session.

    found, seconds = once(folder / "given.npz", f"{identity(model)} {pairs.hash}", lambda: {"vectors": ...})
"""

import os
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np


def once(file: Path, asked: str, make: Callable[[], dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], float]:
    """(what make() gives, the seconds that took), found again in `file` where it was made from the same: `asked` names all it depends on.

    No array may be called "asked" or "seconds", or hold objects. Written aside and renamed; a damaged file is made anew.
    """
    found = _read(file)
    if str(found.pop("asked", "")) == asked:
        return found, float(found.pop("seconds"))
    began, made = time.monotonic(), make()
    seconds, part = time.monotonic() - began, file.with_suffix(".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "wb") as out:
        np.savez(out, asked=np.array(asked), seconds=np.array(seconds), **made)
    os.replace(part, file)
    return made, seconds


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}
