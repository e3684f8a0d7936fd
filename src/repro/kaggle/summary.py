"""What a finished notebook hands over: every figure and table of its work folder shown once, and results.zip."""

import io
import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import PIL.Image

from repro.kaggle import earlier

KEPT = (".json", ".jsonl", ".png", ".svg", ".md", ".html", ".csv", ".txt")  # what results.zip takes
LEFT = ("store", "levir")  # folders of data, which results.zip leaves out beside raw ones
PICTURE = re.compile(r"^!\[.*\]\(.*\)\n?", re.MULTILINE)  # of a report: the figures stand by themselves


def show(work: Path) -> tuple[int, int]:
    """Display figures/**.png and the tables of *.md; how many of each. In a plain Python process their names are printed."""
    figures, texts = sorted((work / "figures").rglob("*.png")), sorted(work.glob("*.md"))
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        print("\n".join(str(path.relative_to(work.parent)) for path in (*texts, *figures)))
        return len(figures), len(texts)
    from IPython.display import Image, Markdown, display

    for path in texts:
        display(Markdown(f"**{path.relative_to(work)}**\n\n{PICTURE.sub('', path.read_text(encoding='utf-8'))}"))
    for path in figures:
        try:
            data, width = _small(path)
        except (OSError, SyntaxError) as error:  # of a session that was cut down while it wrote; the rest is shown
            print(f"{path.relative_to(work)} cannot be read: {error}")
            continue
        display(Markdown(f"**{path.relative_to(work)}**"), Image(data=data, width=width))
    return len(figures), len(texts)


def _small(path: Path, widest: int = 900) -> tuple[bytes, int]:
    """A figure as it stands in a notebook, and its width there: as JPEG where that halves it (Kaggle fails at notebooks that are huge)."""
    whole, png, buffer = PIL.Image.open(path), path.read_bytes(), io.BytesIO()
    whole.convert("RGB").save(buffer, "jpeg", quality=85, subsampling=0)
    jpeg = buffer.getvalue()
    return jpeg if 2 * len(jpeg) < len(png) else png, min(widest, whole.width)


def pack(work: Path) -> str:
    """results.zip beside the work folder; what is in it, in words. Its sections.json says `packed`: no session can go on from it."""
    target = work.parent / "results.zip"
    files = sorted(path for top in work.iterdir() if top.name not in LEFT and not earlier.is_raw(top.name)
                   for path in (top, *top.rglob("*")) if path.is_file() and path.suffix in KEPT
                   and not any(part.endswith(".prepared") for part in path.parts))  # fmt: skip
    part = target.with_name("results.zip.part")
    try:
        _zip(work, files, part)
        os.replace(part, target)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    kinds = {"run records": ("runs", ".json"), "figures": ("figures", ".png")}
    counts = ", ".join(f"{sum(path.parent.name == folder and path.suffix == end for path in files)} {kind}"
                       for kind, (folder, end) in kinds.items())  # fmt: skip
    return f"{target}: {len(files)} files ({counts}), {target.stat().st_size / 1e6:.1f} MB"


def _zip(work: Path, files: list[Path], part: Path) -> None:
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as out:
        for path in files:
            name = path.relative_to(work.parent)
            if path == work / earlier.NAME:
                out.writestr(name.as_posix(), json.dumps({**json.loads(path.read_text(encoding="utf-8")), "packed": True}, indent=1) + "\n")
            else:
                out.write(path, name)


def thin(work: Path) -> None:
    """Remove the raw files that the embedded default drew: thousands, which Kaggle is slow to save, and which are in the store."""
    for folder in sorted(path for path in work.iterdir() if earlier.is_raw(path.name) and path.is_dir() and not path.is_symlink()):
        count = sum(path.is_file() for path in folder.rglob("*"))
        shutil.rmtree(folder)
        print(f"removed {count} raw files of the embedded default, {folder.name}/: they are in the store, and drawn again when needed")
