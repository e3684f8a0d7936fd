"""The ReconVLA guide's preprocessing on folders of pictures (reference: OpenHelix-Team/ReconVLA, scripts/helper), in three steps.

    extract     {root}/{i}_{task}/lang_ann/{lang_ann.yaml, steps.npz}, img/frame_XXXXXXX.png
    crop        {root}/{i}_{task}/crop/frame_XXXXXXX.png, crop_info.jsonl (box, score and source of every crop)
    write_json  [{"id": "task_0_frame_42", "image": "0_open_drawer/img/frame_0000042.png", "crop": ..., "instruction": ...,
                  "actions": 5 x 7 floats}]

Departures: paths in the JSON are relative to `root` (the guide's `img/frame_...` names a picture of every task at once); nothing is
read twice; a frame without a found gaze region gets the whole picture, marked "fallback", instead of being dropped.
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import yaml

from repro import freshness
from repro.data import npy
from repro.data.batches import chunk_rows, last_of_run
from repro.data.boxes import box_index
from repro.data.calvin import Annotation, Split
from repro.data.calvin_frames import Damage, canonical, read_frames
from repro.data.episodes import Episode, decode_png, encode_png
from repro.data.parallel import in_order
from repro.machine import UserError

MEMBERS = ("rgb_static", "rel_actions", "robot_obs", "scene_obs")


def extract(ann_path: Path | str, npz_src_dir: Path | str, root_folder: Path | str, scene: str | None = None, workers: int = 2) -> dict:
    """Write one folder an annotation. Damaged frames are left out and reported; nothing is left at `root_folder` if it fails.

    Returns {episodes, frames, damaged: {name: why}}. Raises UserError as `import_calvin` does.
    """
    source, root = Split(npz_src_dir, Path(npz_src_dir).name, scene, ann_path), Path(root_folder)
    if root.exists():
        raise UserError(f"{root} exists.", next_step="choose another --root_folder, or delete it")
    unfit = [note.task_id for note in source.annotations if not re.fullmatch(r"[\w-]+", note.task_id)]
    if unfit:
        raise UserError(f"{ann_path}: a task cannot name a folder.", expected="letters, digits, _ and -", found=unfit[0])
    part, damage, frames = root.with_name(root.name + ".part"), Damage(source.frames), 0
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    try:
        part.mkdir(parents=True)
        embeddings = np.asarray(
            npy.load_dict(source.annotated_in)["language"].get("emb", np.zeros((len(source.annotations), 0))), np.float32
        )
        where = (source.folder, source.digits, {name: source.shapes[name] for name in MEMBERS})
        tasks = ((where, part, note, embeddings[note.index].reshape(-1)) for note in source.annotations)
        for written, damaged in in_order(_extract_one, tasks, workers):
            damage.add(damaged, source.folder)
            frames += written
        os.rename(part, root)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {"episodes": len(source.annotations), "frames": frames, "damaged": damage.frames}


def _extract_one(where: tuple, root: Path, note: Annotation, embedding: np.ndarray) -> tuple[int, dict[str, str]]:
    """In a worker: write the folder of one annotation; (frames written, damaged frames name -> why)."""
    stack, ids, damaged = read_frames(where, note.start, note.end)
    folder = root / f"{note.index}_{note.task_id}"
    for name in ("img", "lang_ann"):
        (folder / name).mkdir(parents=True)
    about = {"ann": note.instruction, "task": note.task_id, "indx": [note.start, note.end], "emb": embedding.tolist()}
    (folder / "lang_ann" / "lang_ann.yaml").write_text(yaml.safe_dump(about, default_flow_style=None, allow_unicode=True, sort_keys=False))
    for number, picture in zip(ids, stack.get("rgb_static", ()), strict=True):
        (folder / "img" / f"frame_{number:07d}.png").write_bytes(encode_png(picture))
    numbers = {"rel_actions": stack["rel_actions"], "robot_obs": stack["robot_obs"]} if ids else {}
    numbers |= {"environment_state": canonical(stack["scene_obs"], note.scene)} if ids else {}
    steps = {name: values.astype(np.float32) for name, values in numbers.items()}
    np.savez(folder / "lang_ann" / "steps.npz", frame=np.array(ids, np.int64), **steps)
    return len(ids), damaged


def folders(root: Path) -> list[tuple[int, Path]]:
    """(i, folder) of every extracted annotation, in order. UserError when there is none."""
    found = (
        [(int(path.name.split("_")[0]), path) for path in root.glob("*_*") if re.fullmatch(r"\d+_[\w-]+", path.name)]
        if root.is_dir()
        else []
    )
    if not found:
        raise UserError(f"{root} holds no extracted episodes.", expected="folders {i}_{task}", next_step="run `repro calvin extract` first")
    return sorted(found)


def _sentence(folder: Path) -> str:
    return yaml.safe_load((folder / "lang_ann" / "lang_ann.yaml").read_text())["ann"]


def _steps(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "lang_ann" / "steps.npz", allow_pickle=False) as file:
        return dict(file)


def crop(root_folder: Path | str, detector: str = "colour", npz_src_dir: Path | str | None = None, weights: str | None = None) -> Counter:
    """Write crop/frame_XXXXXXX.png beside every picture, and crop_info.jsonl. Returns how many crops came from which source.

    `detector`: "truth" (boxes.json in `npz_src_dir`), "colour", "transformers" or "groundingdino-py" (the pictures; the last two with
    `weights`), or "none" (whole pictures). Folders that are done with the same detector, rules and true boxes are left as they are.
    """
    from repro.gaze.annotate import rules  # gaze builds on data; only this command reaches back
    from repro.gaze.detectors import load

    boxes = box_index(Path(npz_src_dir).parent, Path(npz_src_dir).name) if npz_src_dir else None
    if detector == "truth" and boxes is None:
        raise UserError(f"{npz_src_dir} holds no boxes.json." if npz_src_dir else "Where are the true boxes?",
                        expected="--npz_src_dir FOLDER with true boxes (play table, calvin_sim)", found=npz_src_dir or "no --npz_src_dir",
                        next_step="name the split's folder, in which boxes.json lies; for data without one, --detector colour")  # fmt: skip
    finder = load(detector, weights) if detector not in ("truth", "none") else None
    how, sources = f"{detector} {finder.fingerprint() if finder else ''}".strip() + f", rules {rules()}", Counter()
    if detector == "truth":
        how += f", boxes {freshness.digest(boxes.path.read_bytes())}"
    for _, folder in folders(Path(root_folder)):
        made = folder / "crop_info.jsonl"
        done = [json.loads(line) for line in made.read_text().splitlines()] if made.is_file() else []
        if done and all(line.get("detector") == how for line in done):
            sources.update(line["source"] for line in done)
            continue
        part, lines = folder / "crop.part", []
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name, (data, line) in _crops(folder, finder or detector, boxes):
            (part / name).write_bytes(data)
            lines.append(json.dumps(line | {"detector": how}) + "\n")
            sources[line["source"]] += 1
        made.unlink(missing_ok=True)
        shutil.rmtree(folder / "crop", ignore_errors=True)
        os.rename(part, folder / "crop")
        (folder / "crop_info.part").write_text("".join(lines))
        os.replace(folder / "crop_info.part", made)
    return sources


def _crops(folder: Path, detector, boxes) -> Iterator[tuple[str, tuple[bytes, dict]]]:
    """(file name, (PNG, line of crop_info.jsonl)) of every picture of one episode. detector: a Detector, "truth" or "none"."""
    from repro.gaze.annotate import BOXES, PROPRIO, STATE, STATIC, course, detected, exact, holding, true_boxes, understood
    from repro.gaze.crops import crop as cut
    from repro.gaze.crops import pixels
    from repro.gaze.detectors import Gaze
    from repro.gaze.phrase import look

    steps, sentence = _steps(folder), _sentence(folder)
    numbers = steps["frame"].tolist()
    if not numbers:
        return
    pictures = np.stack([decode_png((folder / "img" / f"frame_{number:07d}.png").read_bytes()) for number in numbers])
    episode = Episode(sentence, {STATIC: pictures, STATE: steps["environment_state"], PROPRIO: steps["robot_obs"]})
    if detector == "none":
        gazes = [Gaze()] * len(numbers)
    elif detector == "truth":
        episode.columns[BOXES] = [json.dumps(boxes.boxes(number)) for number in numbers]
        gazes = exact(episode, true_boxes(episode, pictures.shape[1:3]), "truth")
    else:
        gazes = detected(episode, detector)
    labels = [look(phrase, held)[0] for phrase, held in zip(*course(understood(sentence), holding(episode))[:2], strict=True)]
    for number, picture, gaze, label in zip(numbers, pictures, gazes, labels, strict=True):
        name = f"frame_{number:07d}.png"
        corners = dict(zip(("x1", "y1", "x2", "y2"), pixels(gaze.box, *picture.shape[:2]), strict=True))
        line = {"npz": f"episode_{number:07d}.npz", "original_image": f"img/{name}", "crop_image": f"crop/{name}", "label": label,
                "coordinates": corners, "score": float(gaze.score), "source": gaze.source, "note": gaze.note}  # fmt: skip
        yield name, (encode_png(cut(picture, gaze.box)), line)


def write_json(root_folder: Path | str, output: Path | str, future_k: int = 5, log: Callable[[str], None] = print) -> int:
    """Write the guide's records to `output`, one a line of a JSON list; the number of records. "crop" is null where none was made, which
    is said."""
    root, output = Path(root_folder), Path(output)
    found = folders(root)
    part, count, without = output.with_name(output.name + ".part"), 0, 0
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = open(part, "w")
    except FileNotFoundError as error:  # its folder is there
        raise UserError(f"{output} cannot be written.", "a folder that takes new files", f"{output.parent}, which takes none",
                        "give another --output") from error  # fmt: skip
    with file:
        for i, folder in found:
            sentence, steps = _sentence(folder), _steps(folder)
            rows = np.arange(len(steps["frame"]))
            following = chunk_rows(rows, last_of_run(steps["frame"], np.zeros(len(rows))), future_k)
            for row, number in enumerate(steps["frame"].tolist()):
                name = f"frame_{number:07d}.png"
                actions = steps["rel_actions"][following[row]].astype(float).round(6).tolist()
                crop_name = f"{folder.name}/crop/{name}" if (folder / "crop" / name).is_file() else None
                record = {"id": f"task_{i}_frame_{number}", "image": f"{folder.name}/img/{name}", "crop": crop_name}
                record |= {"instruction": sentence, "actions": actions}
                file.write(("[\n" if count == 0 else ",\n") + json.dumps(record))
                count, without = count + 1, without + (crop_name is None)
        file.write("\n]\n" if count else "[]\n")
    os.replace(part, output)
    if without:
        log(f"[WARN] {without:,} of {count:,} records have no crop: repro calvin crop first")
    return count
