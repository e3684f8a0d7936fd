"""CALVIN's episodes that a session fetches itself (`calvin_episodes`): found where they are already, gone on with, or begun where they fit.

    root = fetched.episodes("t4", work, attached, earlier, url, 200, disk_gb=12)   # calvin_root for the sections
    fetched.drop(work)                                                             # once the work folder has its copy
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from repro.data import batches, calvin_remote
from repro.data.episodes import Store
from repro.data.stored import copy_files
from repro.kaggle.earlier import Earlier
from repro.kaggle.inputs import SPLITS, Inputs, _json
from repro.machine import UserError

NAME = "calvin_store"  # in working/
SPARE = 2**30  # bytes of disk that stay free
FRAMES = 60  # of an annotated episode of CALVIN: 500 have about 30,000
STORED = 90_000  # bytes of a frame in the store (results/benchmarks/calvin_import.json: 85 kB)
PREPARED = {"t4": 737_280}  # bytes of a prepared frame, where they are many: the canvas, which all rows share, and two targets as the VAE
                            # sees them, which `gaze` and `whole` share


def episodes(profile: str, work: Path, attached: Inputs, earlier: Earlier | None, url: str, count: int, disk_gb: float,
             log: Callable = print) -> Path:  # fmt: skip
    """The folder of training/ and validation/: a store that was made of the same episodes before, else what is fetched or gone on with.

    UserError, before anything is written, where the disks are too small.
    """
    for folder in (work, *sorted(work.parent.iterdir()), *attached.outputs):
        if _holds(folder / "store", url, count):
            log(f"CALVIN: {folder / 'store'} holds what was fetched")
            for line in (line for split in SPLITS for line in calvin_remote.remarks(Store(folder / "store" / split))):
                log(line)
            return folder / "store"
    target = work.parent / NAME
    if not target.exists() and attached.fetching:  # of the last session: its frames are not fetched again
        _take(newest(attached.fetching, earlier), target, log)
    elif not target.exists():
        check_room(profile, work.parent, count, disk_gb)
    calvin_remote.fetch(url, target, count, disk_gb, log=log)
    return target


def _holds(store: Path, url: str, count: int) -> bool:
    """Whether both splits at `store` were fetched by the same call."""
    training, validation = (_json(store / split / "meta" / "repro.json").get("partial") or {} for split in SPLITS)
    return training.get("asked") == count and training.get("url") == validation.get("url") == url


def newest(found: list[Path], earlier: Earlier | None) -> Path:
    """Of unfinished fetches the one in the output of the session that this one goes on from, else the largest."""
    own = [path for path in found if earlier and path.parent == earlier.folder.parent]
    return own[0] if own else max(found, key=_size)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _take(source: Path, target: Path, log: Callable) -> None:
    """A copy of an unfinished fetch, whole or absent."""
    size, free = _size(source), shutil.disk_usage(target.parent).free
    if size + SPARE > free:
        raise UserError(f"{source} does not fit into {target.parent}", f"{(size + SPARE) / 1e9:.1f} GB free", f"{free / 1e9:.1f} GB",
                        f"delete what is not needed there (!du -sh {target.parent}/*), then Run All")  # fmt: skip
    log(f"goes on with {source}")
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of a copy that was stopped
    copy_files(source, part)
    os.replace(part, target)


def check_room(profile: str, working: Path, count: int, disk_gb: float) -> None:
    """UserError, with how many episodes fit, where the disks are too small for `count`: fetched, copied into the store, prepared."""
    scratch = Path(os.environ.get("REPRO_SCRATCH") or working)
    free = {place: shutil.disk_usage(place).free - SPARE for place in (working, scratch)}
    one_disk = working.stat().st_dev == scratch.stat().st_dev

    def needs(count: int) -> tuple[float, float]:
        """Bytes in working/, where the store lies twice for a while, and for prepared pictures, as data/batches.py wants it."""
        frames = FRAMES * (count + max(calvin_remote.TASKS, round(calvin_remote.VALIDATION * count)))
        made = frames * PREPARED.get(profile, 0)
        return 2 * min(frames * STORED, disk_gb * 1e9), made + min(made, batches.SPARE)

    def fits(count: int) -> bool:
        here, there = needs(count)
        return here + there <= min(free.values()) if one_disk else here <= free[working] and there <= free[scratch]

    if not fits(count):
        here, there = needs(count)
        most = max(filter(fits, range(10, count, 10)), default=0)
        raise UserError(f"{count} episodes of CALVIN do not fit here",
                        f"{here / 1e9:.1f} GB in {working}, and for prepared pictures and checkpoints "
                        f"{there / 1e9:.1f} GB in {scratch}" + (", which is the same disk" if one_disk else ""),
                        ", ".join(f"{max(0, size) / 1e9:.1f} GB in {place}" for place, size in free.items()),
                        f"set calvin_episodes = {most}, the most that fits" if most else f"delete what is not needed (!du -sh {working}/*)")


def drop(work: Path, log: Callable = print) -> None:
    """Remove the fetched store where the work folder has its copy: else it lies on the disk, and in the output, twice."""
    place = work.parent / NAME
    made_of = lambda folder: [_json(folder / split / "meta" / "repro.json").get("source_fingerprint") for split in SPLITS]
    if all(made_of(place)) and made_of(place) == made_of(work / "store"):
        shutil.rmtree(place)
        log(f"removed {place}: {work / 'store'} holds a copy")
