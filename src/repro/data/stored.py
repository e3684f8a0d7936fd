"""A store in the place of a raw split: attached as an input, read-only perhaps, and used as if it had just been imported."""

import os
import shutil
from pathlib import Path

from repro.data.episodes import EpisodeInfo, Store, aside
from repro.machine import UserError

SPARE = 2**30  # bytes of disk that stay free


def is_store(folder: Path | str) -> bool:
    return (Path(folder) / "meta" / "repro.json").is_file()


def copy_files(folder: Path, out: Path) -> None:
    """The files below `folder`, contents only: an input's files and folders are read-only, ours are not."""
    for path in folder.rglob("*"):
        if path.is_file():
            target = out / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


class Stored:
    """What data.calvin.Split offers to those who import it: `describe`, `fingerprint`, `annotations`; and `copy`."""

    def __init__(self, folder: Path):
        self.folder, self.store = folder, Store(folder)

    @property
    def annotations(self) -> list[EpisodeInfo]:
        return self.store.episodes

    def fingerprint(self) -> str:
        """Of the data that the store was made from."""
        return self.store.meta.get("source_fingerprint", self.store.hash)

    def describe(self) -> str:
        """What it holds, one fact a line."""
        meta, partial = self.store.meta, self.store.meta.get("partial")
        tasks, scenes = {episode.task_id for episode in self.store.episodes}, sorted({episode.scene for episode in self.store.episodes})
        part = f"; {partial['episodes']} of {partial['of']} episodes of {partial['url']}" if partial else ""
        size = f"{len(self.store)} episodes of {len(tasks)} tasks, {self.store.frames} frames"
        return (f"{meta.get('split', self.folder.name)}: a store of {size}\n"
                f"made of {meta.get('name')} ({meta.get('simulator')}){part}; scene {', '.join(scenes)}")  # fmt: skip

    def copy(self, out: Path | str) -> Store:
        """A copy at `out` that can be written to (gaze boxes are added to a store). Replaces what is there; whole or absent."""
        out = Path(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        need, free = sum(path.stat().st_size for path in files), shutil.disk_usage(out.parent).free
        if need + SPARE > free:
            raise UserError(f"{self.folder} does not fit beside {out}", f"{(need + SPARE) / 1e9:.1f} GB free", f"{free / 1e9:.1f} GB",
                            "remove other outputs, or make a store of fewer episodes")  # fmt: skip
        part, old = aside(out)
        for rest in (part, old):
            shutil.rmtree(rest, ignore_errors=True)
        copy_files(self.folder, part)
        if out.exists():
            os.rename(out, old)
        os.rename(part, out)
        shutil.rmtree(old, ignore_errors=True)
        return Store(out)
