"""Some annotated episodes of a CALVIN zip on a web server, straight into a store: 166 GB need not be downloaded to have 500 episodes.

    fetch("http://calvin.cs.uni-freiburg.de/dataset/task_D_D.zip", "calvin_store", episodes=500, disk_gb=12)
    # calvin_store/training and calvin_store/validation; give `calvin_store` as calvin_root, or `repro store push` it

Only the zip's index and the frames of the chosen episodes are read; each is checked by its CRC-32, read by calvin_import, stored and
dropped. Killed, the next call goes on from the last COMMIT episodes; stopped by clock.OutOfTime or an error, from where it was. Disk: the
store, the index, the frames of one episode.
"""

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from repro import clock
from repro.data import calvin_import
from repro.data.calvin import Annotation, Split, find_annotations, read_annotations
from repro.data.calvin_frames import FPS, Damage
from repro.data.episodes import Store
from repro.data.remote_zip import DamagedMember, Member, RemoteZip
from repro.data.resumable import ResumableWriter
from repro.data.stored import is_store
from repro.machine import UserError

FETCHING = "fetching"  # below `out` while it is not done
COMMIT = 10  # episodes: about 50 MB that a killed session loses at most
SPARE = 2**30  # bytes of disk that stay free
VALIDATION = 0.1  # as many episodes of validation/ as this share of training's, but one of each of 34 tasks at least
TASKS = 34


def fetch(url: str, out: Path | str, episodes: int, disk_gb: float = 12.0, seed: int = 0, scene: str | None = None, log: Callable = print,
          commit: int = COMMIT, **connection) -> dict[str, Store]:  # fmt: skip
    """{split: Store} at out/validation and out/training, of so many episodes, or fewer where the disk budget ends before.

    `scene` "A".."D" for data whose scene no file tells; `connection`: waits and sleep of RemoteZip. A store that is there and was made by
    the same call is used as it is, and what `remarks` has to say of it is said; another one is an error. UserError leaves what was
    fetched, for the next call.
    """
    out = Path(out)
    counts = {"validation": max(TASKS, round(VALIDATION * episodes)), "training": episodes}
    if episodes < 1:
        raise UserError("no episode is asked for", "1 or more", episodes)
    asked = {split: {"url": url, "split": split, "asked": count, "seed": seed} for split, count in counts.items()}
    for split in counts:
        if is_store(out / split) and {**asked[split]}.items() - (Store(out / split).meta.get("partial") or {}).items():
            raise UserError(f"{out / split} is another store", asked[split], Store(out / split).meta.get("partial", "no fetched one"),
                            "choose another folder, or remove it")  # fmt: skip
        for line in remarks(Store(out / split)) if is_store(out / split) else ():
            log(line)
    state = out / FETCHING
    archive = None
    for split, count in counts.items():
        if not is_store(out / split):
            archive = archive or RemoteZip(url, state / "index", **connection)
            budget = disk_gb * 1e9 - sum(
                path.stat().st_size for path in out.rglob("*") if path.is_file() and f"{split}.part" not in path.parts
            )
            _split(archive, split, out / split, state, count, asked[split], budget, scene, commit, log)
    shutil.rmtree(state, ignore_errors=True)
    return {split: Store(out / split) for split in counts}


def remarks(store: Store) -> list[str]:
    """What is to be said of a fetched store that is used again: that it is short of what was asked for, or of an older library."""
    partial, found = store.meta["partial"], []
    if partial["episodes"] < (wanted := min(partial["asked"], partial["of"])):
        why = "the disk budget ended it, or their frames were damaged"
        found.append(f"{store.folder} has {partial['episodes']} of {wanted} episodes: {why}; remove it to fetch more")
    if store.meta.get("code") != calvin_import.code():
        found.append(f"{store.folder} was made by another version of this library; remove it to fetch it again")
    return found


def choose(notes: list[Annotation], count: int, seed: int) -> list[Annotation]:
    """`count` annotations, one task after the other so that all are there, drawn by `seed`, in the order of their frames."""
    by_task: dict[str, list[Annotation]] = {}
    for note in notes:
        by_task.setdefault(note.task_id, []).append(note)
    draw = random.Random(seed)
    for task in sorted(by_task):
        draw.shuffle(by_task[task])
    rounds = [[by_task[task][turn] for task in sorted(by_task) if turn < len(by_task[task])] for turn in range(len(notes))]
    picked = [note for one in rounds for note in one][:count]
    return sorted(picked, key=lambda note: (note.start, note.index))


def _split(archive: RemoteZip, split: str, out: Path, state: Path, count: int, asked: dict, budget: float, scene: str | None, commit: int,
           log: Callable) -> None:  # fmt: skip
    """One split of the archive as a store at `out`."""
    source, prefix = _source(archive, split, state, scene)
    notes = choose(source.annotations, count, seed=asked["seed"])
    names = {note.index: [source.frame_path(frame).name for frame in range(note.start, note.end + 1)] for note in notes}
    wanted = {f"{prefix}{split}/{name}" for group in names.values() for name in group}
    members = {member.name.rpartition("/")[2]: member for member in archive.find(wanted.__contains__)}
    size = sum(member.packed for member in members.values())
    meta = calvin_import.store_meta(state / "data", source)
    meta |= {"name": prefix.strip("/") or meta["name"], "partial": {**asked, "of": len(source.annotations)}}
    every = calvin_import.frames_a_picture(state / "data", split)
    clock.check()
    made_of = {**asked, "scene": scene, "code": meta["code"], "file": [archive.file.size, archive.file.tag]}
    with ResumableWriter(out, FPS, meta, made_of) as writer:
        log(f"{split}: {len(notes)} of {len(source.annotations)} annotated episodes, {len(members)} frames, {size / 1e6:.0f} MB to read"
            + (f"; {writer.episodes} episodes are here already" if writer.episodes else ""))  # fmt: skip
        damage = Damage(len(wanted), writer.note.get("damaged", {}))
        done = writer.note.get("tried", 0)
        progress = clock.Progress(f"fetch {split}", len(notes), "episodes", log, before=done)
        for tried, note in enumerate(notes[done:], done + 1):
            room = min(budget - writer.bytes, shutil.disk_usage(out.parent).free - SPARE)
            frames = [members[name] for name in names[note.index] if name in members]
            if room < 2 * sum(member.size for member in frames):  # the episode's frames, and its rows: never larger than they
                if not writer.episodes:
                    raise UserError(f"there is no room for one episode in {out.parent}", "a larger disk budget, or more free disk",
                                    f"{max(0, room) / 1e6:.0f} MB", "set disk_gb higher, or remove other outputs")  # fmt: skip
                log(f"{split}: the disk budget ends after {writer.episodes} episodes; the store is made of these")
                break
            columns, damaged = _episode(archive, source, note, frames, every)
            damage.add(damaged, source.folder)
            if columns:
                writer.add(calvin_import.as_episode(source, note, columns))
            writer.note = {"tried": tried, "damaged": damage.frames}
            if tried % commit == 0:
                writer.commit()
            progress(tried, f"{archive.received / 1e6:.0f} MB read")
            clock.check()
        writer.meta["partial"]["episodes"] = writer.episodes
        writer.meta["damaged"] = damage.frames
        writer.meta["source_fingerprint"] = hashlib.sha256((meta["source_fingerprint"] + writer.hash.hexdigest()).encode()).hexdigest()
    for name, why in damage.frames.items():
        log(f"left out {name}: {why}")


def _source(archive: RemoteZip, split: str, state: Path, scene: str | None) -> tuple[Split, str]:
    """The split, by its index, annotations and a first frame out of the archive, checked; and the archive's folder, "task_D_D/"."""
    small = archive.find(lambda name: not name.endswith(".npz") and not name.endswith("/"))
    index = [member.name for member in small if member.name.endswith(f"{split}/ep_start_end_ids.npy")]
    if len(index) != 1:
        raise UserError(f"{archive.file.url} holds no CALVIN data", f"one {split}/ep_start_end_ids.npy", f"{len(index)} of them",
                        "give the address of task_D_D.zip, task_ABC_D.zip or another of CALVIN's own zips")  # fmt: skip
    prefix = index[0].removesuffix(f"{split}/ep_start_end_ids.npy")
    told = [member for member in small if member.name.endswith(f"{split}/lang_annotations/auto_lang_ann.npy")]
    told = told or [member for member in small if f"{prefix}{split}/lang_" in member.name and member.name.endswith("auto_lang_ann.npy")][:1]
    plain = {f"{prefix}{split}/{name}" for name in ("ep_start_end_ids.npy", "scene_info.npy", "statistics.yaml", "boxes.json")}
    folder = state / "data" / split
    _write(archive, [member for member in small if member.name in plain | {f"{prefix}about.json"}] + told, prefix, state / "data")
    table = read_annotations(find_annotations(folder))
    first = {start for _, _, (start, end) in table[:3]}
    start_of = lambda name: int(digits) if (digits := name.rpartition("episode_")[2].removesuffix(".npz")).isdigit() else None
    frames = archive.find(lambda name: name.startswith(f"{prefix}{split}/episode_") and start_of(name) in first)
    _write(archive, frames, prefix, state / "data")
    return Split(folder, split, scene), prefix


def _write(archive: RemoteZip, members: list[Member], prefix: str, folder: Path) -> None:
    """Members as files below `folder`; a damaged one is an error: the rest cannot be read without these."""
    for member, content in archive.read(members):
        if isinstance(content, DamagedMember):
            raise UserError(f"{member.name} in {archive.file.url} is damaged", "what the index says", content, "try again later")
        target = folder / member.name.removeprefix(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _episode(archive: RemoteZip, source: Split, note: Annotation, frames: list[Member], every: int) -> tuple[dict, dict[str, str]]:
    """(columns, damaged frames name -> why) of one annotation: its frames on disk for a moment, read as any other CALVIN frames."""
    folder, why = source.folder / "frames", {}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for member, content in archive.read(frames):
        name = member.name.rpartition("/")[2]
        if isinstance(content, DamagedMember):
            why[name] = str(content)
        else:
            (folder / name).write_bytes(content)
    columns, damaged = calvin_import.read_episode((folder, source.digits, source.shapes), note.start, note.end, note.scene, every)
    shutil.rmtree(folder)
    return columns, {name: why.get(name, text) for name, text in damaged.items()}
