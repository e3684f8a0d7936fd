"""What an earlier session left: its sections.json, and going on from it.

    found = earlier.choose(attached.outputs, "t4", print)     # the newest of this profile, None where there is none
    earlier.take(found, working / "t4", print)                # its files into the folder that can be written

sections.json is written when a session begins, at each section and at its end, so that a session which was cut down hard has one too.
"""

import filecmp
import json
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from repro import freshness
from repro.kaggle.inputs import SECTIONS as NAME
from repro.machine import UserError

RAW = ("calvin", "libero", "aerial")  # raw files of the embedded default: drawn again when needed, too many for Kaggle to save
SPARE = 2**30  # bytes of disk that stay free
AGAIN = ("right panel, Input: remove it, and attach the output of a version that has ended (Add Input, Your Work); without one the run "
         "begins anew; then Run All")  # fmt: skip

KINDS = {"profile": str, "library": str, "saved": float, "session": int, "state": dict, "why": str, "seconds": dict, "parameters": dict,
         "data": dict, "descends": list, "packed": bool}  # fmt: skip


@dataclass(frozen=True)
class Earlier:
    """A session's work folder, and what its sections.json says; fields that an older library did not write are empty."""

    folder: Path
    profile: str
    library: str
    saved: float  # when, in seconds since 1970
    session: int  # 1: the first
    state: dict  # section -> finished | cut | failed | begun
    why: str  # the cut one was cut
    seconds: dict  # section -> of all sessions
    parameters: dict
    data: dict  # CALVIN, LIBERO, LEVIR-CC -> embedded | real
    descends: list  # `saved` of the sessions that it goes on from, the last one first
    packed: bool  # out of results.zip: no checkpoints, no stores

    @property
    def when(self) -> str:
        return datetime.fromtimestamp(self.saved, UTC).strftime("%Y-%m-%d %H:%M UTC")

    def in_words(self) -> str:
        """Its sections: finished, cut and why."""
        said = [f"finished {', '.join(self.of('finished')) or 'nothing'}"]
        said += [f"cut {', '.join(cut)} ({self.why or 'no reason kept'})"] if (cut := [*self.of("cut"), *self.of("begun")]) else []
        said += [f"failed {', '.join(failed)}"] if (failed := self.of("failed")) else []
        return "; ".join(said)

    def of(self, state: str) -> list[str]:
        return [name for name, found in self.state.items() if found == state]


def read(folder: Path, step: str = AGAIN) -> Earlier:
    """The session that left `folder`. UserError, with the next click (`step`), where its sections.json is torn or no such file."""
    path = folder / NAME
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        about = {"library": "", "saved": 0, "session": 1, "state": {}, "why": "", "seconds": {}, "parameters": {}, "data": {},
                 "descends": [], "packed": False, **about}  # fmt: skip
        fields = {name: kind(about[name]) for name, kind in KINDS.items()}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: what this earlier session has done cannot be known", "JSON with profile, state and saved",
                        f"{type(error).__name__}: {error}", step) from error  # fmt: skip
    return Earlier(folder, **fields)


def choose(folders: list[Path], profile: str, echo=print) -> Earlier | None:
    """The newest session of this profile by its own time; what is left alone is said. UserError where one is damaged."""
    fitting = []
    for one in map(read, folders):
        if one.packed:
            echo(f"{one.folder} is results.zip, unpacked: figures and records, no checkpoints. It is left alone; to go on, attach the "
                 "output of the notebook itself (Add Input, Your Work)")  # fmt: skip
        elif one.profile != profile:
            echo(f"{one.folder} is of profile {one.profile}, this one is {profile}: left alone")
        else:
            fitting.append(one)
    fitting.sort(key=lambda one: one.saved)
    for one in fitting[:-1]:
        echo(f"{one.folder} ({one.when}) is older than {fitting[-1].folder} ({fitting[-1].when}): left alone")
    return fitting[-1] if fitting else None


def take(found: Earlier, work: Path, echo=print) -> int:
    """Copy its files into `work`; how many. Those that are there with the same size stay; cut off, it goes on where it was.

    Nothing is copied where `work` went on from it before: what is there is newer. What another session left there counts as the same
    only where its content is. UserError where the disk is too small.
    """
    own = here(work)
    if own and found.saved in own.descends:
        echo(f"{work} went on from it before and is newer: nothing is copied")
        return 0
    files = [path for path in sorted(found.folder.rglob("*")) if path.is_file() and _needed(path.relative_to(found.folder))]
    lacking = [path for path in files if not _same(path, work / path.relative_to(found.folder), closely=own is not None)]
    size, free = sum(path.stat().st_size for path in lacking), shutil.disk_usage(_there(work)).free
    if size + SPARE > free:
        raise UserError(f"{found.folder} does not fit into {work}", f"{(size + SPARE) / 1e9:.1f} GB free", f"{free / 1e9:.1f} GB",
                        "delete what is not needed there (!du -sh /kaggle/working/*), or stop this session and Run All in a new one, "
                        "whose disk is empty")  # fmt: skip
    for path in lacking:
        target = work / path.relative_to(found.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        shutil.copyfile(path, part)  # contents only: an input's files are read-only, ours are not
        os.replace(part, target)
    there = f"; {len(files) - len(lacking)} were there" if len(files) > len(lacking) else ""
    echo(f"copied {len(lacking)} files, {size / 1e6:.1f} MB, into {work}{there}")
    return len(lacking)


def is_raw(folder: str) -> bool:
    """Whether a folder of the work folder holds raw files of the embedded default, whole or in the making."""
    return folder.removesuffix(".part") in RAW


def _needed(name: Path) -> bool:
    made_again = is_raw(name.parts[0]) or any(part.endswith(".prepared") for part in name.parts)
    return not made_again and name.suffix != ".part" and name.parts != (NAME,)


def _same(path: Path, target: Path, closely: bool) -> bool:
    same = target.is_file() and target.stat().st_size == path.stat().st_size
    return same and (not closely or filecmp.cmp(path, target, shallow=False))


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def here(work: Path) -> Earlier | None:
    """What the last session in this very folder left, a live one that is run again."""
    return read(work, f"delete this file (!rm {work / NAME}), then Run All") if (work / NAME).is_file() else None


def write(work: Path, about: dict) -> None:
    """sections.json of a session, whole or as it was."""
    work.mkdir(parents=True, exist_ok=True)
    try:
        freshness.write(work / NAME, about)
    except OSError:
        (work / NAME).with_suffix(".part").unlink(missing_ok=True)
        raise
