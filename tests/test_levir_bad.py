"""LEVIR's readers on odd boxes and files whose values are of other types. Run: pytest tests/test_levir_bad.py"""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from levir_folder import BOX, SIZE, edit, levir_folder, picture
from test_levir import arrow_folder, row

from repro.data import levir
from repro.data.episodes import encode_png
from repro.machine import UserError

SAME = "the scene is the same as before"


def plain_folder(root: Path, *records: dict) -> Path:
    """Pictures with annotations.json: pair i of split "test", "a road", with the keys of `records[i]` over it."""
    root.mkdir(parents=True, exist_ok=True)
    made = []
    for i, record in enumerate(records):
        for date in "ab":
            (root / f"{date}{i}.png").write_bytes(encode_png(picture(i)))
        made.append({"image": f"a{i}.png", "image2": f"b{i}.png", "caption": "a road", "split": "test"} | record)
    (root / "annotations.json").write_text(json.dumps(made))
    return root


PIXELS = [6, 4, 18, 12]


@pytest.mark.parametrize("kind", ["plain", "arrow"])
@pytest.mark.parametrize("mark", [[0, 0, 0, 0], [-1, -1, -1, -1], [0, 0, 1, 1], None])
@pytest.mark.parametrize("others", [PIXELS, (np.array(PIXELS) / SIZE).tolist()])
def test_a_box_that_marks_no_box_on_an_unchanged_pair_is_none(tmp_path, kind, mark, others):
    if kind == "plain":
        root = plain_folder(tmp_path / "raw", {"bbox": others}, {"bbox": mark, "caption": SAME}, {"bbox": others})
    else:
        whole = lambda box: None if box is None else [float(v) for v in box]
        root = arrow_folder(tmp_path / "raw", [row(0, whole(others)), row(1, whole(mark), SAME), row(2, whole(others))], ("test",))
    layout = levir.find(root)
    assert not any(entry.problem for entry in layout.entries)
    found = list(levir.read(root, "test", log=None))
    assert [p.state for p in found] == ["localisable", "unchanged", "localisable"] and np.allclose(found[0].box_main, BOX)
    assert ("1 unchanged pairs have four equal numbers" in layout.describe()) == (mark is not None and len(set(mark)) == 1)


@pytest.mark.parametrize("wrong, said", [
    ([0, 0, 0, 0], "no value above 1"), ([0, 0, 1, 1], "no value above 1"), ([6, 4, 6, 12], "not x1 < x2"), ([0, 0, 99, 9], "not x1 < x2"),
    (5, "bbox 5 is not four"), ([1, 2, 3], "not four"), ([1, 2, None, 4], "not four"), (["1", "2", "3", "4"], "not four"),
    ([1, 2, 3, float("nan")], "not four"), ([1, 2, 3, 10**400], "not four"), ({"x": 1}, "not four")])  # fmt: skip
def test_a_box_that_cannot_be_on_a_changed_pair_is_named(tmp_path, wrong, said):
    root = plain_folder(tmp_path, {"bbox": PIXELS}, {"bbox": wrong})
    problems = [entry.problem for entry in levir.find(root).entries]
    assert problems[0] is None and said in problems[1]


def test_a_pixel_box_beside_an_arrow_row_without_a_picture_leaves_that_to_the_picture(tmp_path):
    rows = [row(0, [6.0, 4.0, 18.0, 12.0]), row(1, [6.0, 4.0, 18.0, 12.0]) | {"image": {"bytes": None, "path": "a.png"}}]
    root = arrow_folder(tmp_path / "raw", rows, ("test",))
    with pytest.raises(UserError, match="test_000001: before: row 1 of data-00000"):
        list(levir.read(root, "test", log=None))


BAD_SENTENCES = {
    "null": (None, "no list of {raw}"), "strings": (["a", "b", "c", "d", "e"], "no list of {raw}"), "a number": (5, "no list of {raw}"),
    "raw null": ([{"raw": None}] * 5, "no text: None"), "raw a number": ([{"raw": 7}] * 5, "no text: 7")}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_SENTENCES)
def test_captions_of_other_types_are_no_captions(tmp_path, kind):
    told, said = BAD_SENTENCES[kind]
    edit(levir_folder(tmp_path), lambda images: images[1].update(sentences=told))
    entry = levir.find(tmp_path).entries[1]
    assert said in entry.problem and entry.captions == ()
    with pytest.raises(UserError, match="train_000003"):
        levir.ensure_store(tmp_path, "train", tmp_path / "store", workers=1)


@pytest.mark.parametrize("caption, said", [  # fmt: skip
    (None, "no caption"), (7, "no text: 7"), (["a road", None], "no text: None"), ([], "no caption")])
def test_captions_of_other_types_in_plain_folders(tmp_path, caption, said):
    assert said in levir.find(plain_folder(tmp_path, {"caption": caption})).entries[0].problem


def arrow_with(change) -> callable:
    """A maker of an Arrow folder of split "test" whose files `change(root)` then spoils."""
    return lambda root: (arrow_folder(root, [row(0), row(1)], ("test",)), change(root))


def strings_for_boxes(root: Path) -> None:
    arrow_folder(root, [row(0, ["a", "b", "c", "d"]), row(1, [None, "b", "c", "d"])], ("test",))


STRUCTURES = {  # what is wrong: (maker, what is said)
    "image2 a number": (lambda root: plain_folder(root, {"image2": 7}), "record 0 has a wrong file name"),
    "mask a list": (lambda root: plain_folder(root, {"mask": ["m"]}), "record 0 has a wrong file name"),
    "split a list": (lambda root: plain_folder(root, {"split": ["test"]}), "split whose name cannot be used"),
    "split leads out": (lambda root: plain_folder(root, {"split": "../../test"}), "split whose name cannot be used"),
    "no splits": (arrow_with(lambda root: (root / "dataset_dict.json").write_text("{}")), "dataset_dict.json names no splits"),
    "splits a list": (arrow_with(lambda root: (root / "dataset_dict.json").write_text('["test"]')), "dataset_dict.json names no splits"),
    "splits of lists": (arrow_with(lambda root: (root / "dataset_dict.json").write_text('{"splits": [["test"]]}')), "cannot be used"),
    "files as strings": (arrow_with(lambda root: (root / "test" / "state.json").write_text('{"_data_files": ["x.arrow"]}')),
                         "names no Arrow files"),
    "files a word": (arrow_with(lambda root: (root / "test" / "state.json").write_text('{"_data_files": "x"}')), "names no Arrow files"),
    "a torn Arrow file": (arrow_with(lambda root: (root / "test" / "data-00000-of-00001.arrow").write_bytes(b"ARROW1" * 9)),
                          "cannot be read"),
    "strings for boxes": (strings_for_boxes, "not four numbers"),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRUCTURES)
def test_structures_of_other_types_are_refused_by_name(tmp_path, kind):
    make, said = STRUCTURES[kind]
    make(tmp_path / "raw")
    with pytest.raises(UserError, match=said):
        list(levir.read(tmp_path / "raw", "test", log=None))


def test_a_null_among_an_arrow_boxs_numbers(tmp_path):
    layout = levir.find(arrow_folder(tmp_path / "raw", [row(0, [1.0, 2.0, None, 4.0])], ("test",)))
    assert layout.entries[0].problem == "bbox [1.0, 2.0, None, 4.0] is not four numbers"


def test_a_zip_with_a_damaged_deflated_member_leaves_nothing(tmp_path):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("good.txt", np.random.default_rng(0).integers(0, 9, 5000, np.uint8).tobytes())
    data = bytearray(path.read_bytes())
    data[60:90] = b"\xff" * 30
    path.write_bytes(data)
    with pytest.raises(UserError, match="cannot be unpacked"):
        levir.find(path)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.zip"]
