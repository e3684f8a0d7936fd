"""LEVIR's data into pairs: layouts, captions, states, the store, and what bad input gets. Run: pytest tests/test_levir.py"""

import json
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from levir_folder import BOX, CHANGE, MASK, SIZE, edit, grey_mask, levir_folder, picture

from repro import freshness
from repro.data import levir
from repro.data.episodes import encode_png
from repro.data.levir import NO_CHANGE, Pairs
from repro.data.levir_entries import SPLITS
from repro.data.levir_pictures import clip_pixels
from repro.machine import UserError


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for inside in sorted(folder.rglob("*")):
            file.write(inside, f"LEVIR-MCI-dataset/{inside.relative_to(folder)}")
    return path


def arrow_folder(root: Path, rows: list[dict], splits: tuple[str, ...] = ()) -> Path:
    """As `datasets` saves: the same rows in each split, or a set without splits."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for folder in [root / split for split in splits] or [root]:
        folder.mkdir(parents=True)
        columns = {name: pa.array([row[name] for row in rows], kind if name.startswith("image") else None) for name in rows[0]}
        table = pa.table(columns)
        with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
        (folder / "dataset_info.json").write_text("{}")
    if splits:
        (root / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return root


def row(i: int, box=None, caption="a house is built") -> dict:
    made = {name: {"bytes": encode_png(picture(2 * i + k)), "path": None} for k, name in enumerate(("image", "image2"))}
    return made | {"caption": caption, "bbox": box}


# --- what is read -------------------------------------------------------------------------------------------------------------------


def test_levir_mci_folder(tmp_path, capsys):
    found = list(levir.read(levir_folder(tmp_path / "DATA" / "inner"), "train"))  # an A in the path is not the folder A
    shown = capsys.readouterr().out
    assert "LEVIR-MCI, known by LevirCCcaptions.json" in shown and "changeflag is in 6 of 6" in shown
    assert [line.split() for line in shown.splitlines()[2:4]] == [["train", "4", "2", "20", "0"], ["val", "2", "1", "10", "0"]]
    assert [p.name for p in found] == [f"train_{n:06d}" for n in (1, 3, 5, 7)], "names are not contiguous"
    same, other = found[0], found[1]
    assert (same.changed, same.state, same.components) == (False, "unchanged", 0)
    assert same.box_main is same.box_union is same.box_source is None
    assert same.captions == NO_CHANGE and other.captions == CHANGE, "without the release's blanks and full stops"
    assert (other.changed, other.state, other.box_source, other.components, other.split) == (True, "localisable", "mask", 1, "train")
    assert np.allclose(other.box_main, BOX) and np.allclose(other.box_union, BOX) and (other.mask[MASK] == 2).all()
    assert np.array_equal(other.before, picture(2)) and np.array_equal(other.after, picture(3)), "RGB, A before B"


def test_levir_cc_has_no_boxes_and_differencing_is_flagged(tmp_path):
    root = levir_folder(tmp_path, masks=False, flags=False)
    assert {p.state for p in levir.read(root, "train", log=None) if p.changed} == {"not localisable"}
    guessed = [p for p in levir.read(root, "train", difference=True, log=None) if p.changed]
    assert {p.box_source for p in guessed} == {"diff"} and {p.state for p in guessed} == {"not localisable"}
    assert all(p.box_main is not None for p in guessed)
    pairs = levir.ensure_store(root, "train", tmp_path / "store", workers=1)
    with pytest.raises(UserError, match="images.mask"):
        pairs.masks([0])
    assert pairs[1].mask is None and levir.find(root).boxes is None


def test_three_states_and_the_table(tmp_path):
    root = levir_folder(tmp_path / "raw", train=6)
    lake = root / "images" / "train" / "label" / "train_000003.png"
    lake.write_bytes(encode_png(grey_mask(False)))
    conflict = root / "images" / "train" / "label" / "train_000005.png"
    conflict.write_bytes(encode_png(grey_mask(True)))
    speck = np.zeros((SIZE, SIZE, 3), np.uint8)
    speck[3:6, 3:8] = 128
    (root / "images" / "train" / "label" / "train_000007.png").write_bytes(encode_png(speck))
    said = []
    stores = {split: levir.ensure_store(root, split, tmp_path / split, workers=1, log=said.append) for split in ("train", "val")}
    assert stores["train"].column("state") == ["unchanged", "not localisable", "unchanged", "not localisable", "unchanged", "localisable"]
    assert np.isnan(stores["train"].column("box_main")[:5]).all() and np.allclose(stores["train"].column("box_main")[5], BOX)
    assert stores["train"].column("box_source") == [None] * 5 + ["mask"] and stores["train"].column("components").tolist() == [0] * 5 + [1]
    text, table = levir.state_table(stores)
    assert table["train"] == {"changed | box": 1, "changed | no box": 2, "unchanged | box": 1, "unchanged | no box": 2}
    assert table["val"] == {"changed | box": 1, "changed | no box": 0, "unchanged | box": 0, "unchanged | no box": 1}
    assert [line.split()[-1] for line in text.splitlines()[1:]] == ["6", "2"] and any("1 pairs of train have a mask" in s for s in said)


def test_the_store_gives_back_the_pairs(tmp_path):
    root = levir_folder(tmp_path / "raw", train=37)  # three row groups
    pairs = levir.ensure_store(root, "train", tmp_path / "store", workers=1)
    read = list(levir.read(root, "train", log=None))
    assert len(pairs) == 37 and [e.length for e in pairs.store.episodes] == [16, 16, 5]
    for i in (0, 1, 16, 35, -1):
        for name, value in vars(read[i]).items():
            back = getattr(pairs[i], name)
            assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value, (i, name)
    before, after = pairs.pictures([35, 2, 35, 17])
    assert all(np.array_equal(before[k], read[i].before) and np.array_equal(after[k], read[i].after) for k, i in enumerate((35, 2, 35, 17)))
    assert np.array_equal(pairs.masks([35, 0])[0], read[35].mask) and before.dtype == pairs.masks([0]).dtype == np.uint8
    assert pairs.column("captions")[1] == CHANGE and pairs.column("changed").tolist() == [bool(i % 2) for i in range(37)]
    assert pairs.column("box_union").dtype == np.float32 and pairs.column("name")[2] == "train_000005"
    with pytest.raises(IndexError, match="no pair 37"):
        pairs.pictures([37])
    assert pairs.pictures([])[0].shape == (0, SIZE, SIZE, 3)


def test_a_store_is_made_once_and_again_when_the_source_changes(tmp_path, monkeypatch):
    root = levir_folder(tmp_path / "raw")
    first = levir.ensure_store(root, "train", tmp_path / "store", workers=1)
    stamp = (tmp_path / "store" / "meta" / "repro.json").stat().st_mtime_ns
    assert levir.ensure_store(root, "train", tmp_path / "store", workers=1).hash == first.hash
    assert (tmp_path / "store" / "meta" / "repro.json").stat().st_mtime_ns == stamp, "not written again"
    edit(root, lambda images: images[1]["sentences"][0].update(raw=" a hut is built ."))
    again = levir.ensure_store(root, "train", tmp_path / "store", workers=1)
    assert again.hash != first.hash and again.column("captions")[1][0] == "a hut is built"
    assert levir.ensure_store(root, "val", tmp_path / "store", workers=1).column("name") == ["val_000001", "val_000003"]
    label = root / "images" / "train" / "label" / "train_000003.png"
    old, size = label.read_bytes(), label.stat().st_size
    moved = encode_png(np.roll(grey_mask(True), 2, axis=1))
    label.write_bytes(moved + bytes(max(0, size - len(moved))))
    assert label.stat().st_size == size, "another mask of as many bytes"
    shifted = levir.ensure_store(root, "train", tmp_path / "store", workers=1)
    assert shifted.hash != again.hash and np.allclose(shifted.column("box_main")[1], BOX + np.float32([2, 0, 2, 0]) / SIZE)
    label.write_bytes(old)
    assert levir.ensure_store(root, "train", tmp_path / "store", workers=1).hash == again.hash
    stamp = (tmp_path / "store" / "meta" / "info.json").stat().st_mtime_ns
    label.touch()
    assert levir.ensure_store(root, "train", tmp_path / "store", workers=1).hash == again.hash
    assert (tmp_path / "store" / "meta" / "info.json").stat().st_mtime_ns == stamp, "a new time alone is no new file"
    with monkeypatch.context() as kept:
        kept.setattr(levir, "_asked", lambda *about: pytest.fail("the files are read again"))
        assert levir.ensure_store(root, "train", tmp_path / "store", workers=1).states == again.states
    with monkeypatch.context() as newer:
        newer.setattr(freshness, "code", lambda *names: "of another version")
        assert levir.ensure_store(root, "train", tmp_path / "store", workers=1).hash == again.hash
    assert (tmp_path / "store" / "meta" / "info.json").stat().st_mtime_ns != stamp, "other code may make another store"
    layout = levir.find(root)
    flawed = replace(layout, entries=(replace(layout.entries[0], problem="a flaw"), *layout.entries[1:]))
    assert levir._asked(flawed, "train", False) != levir._asked(layout, "train", False)


def test_two_processes_write_the_same_store(tmp_path):
    root = levir_folder(tmp_path / "raw", train=8 * levir.GROUP + 5)  # more than one process writes alone
    one, two = (levir.ensure_store(root, "train", tmp_path / f"store{n}", workers=n) for n in (1, 2))
    assert one.hash == two.hash and one.states == two.states


def test_zip_with_a_root_folder_of_its_own(tmp_path):
    path = zipped(levir_folder(tmp_path / "raw"), tmp_path / "LEVIR-MCI-dataset.zip")
    layout = levir.find(path, tmp_path / "unpacked")
    assert layout.root == tmp_path / "unpacked" / "LEVIR-MCI-dataset" and layout.splits == {"train": 4, "val": 2}
    assert len(list(levir.read(path, "val", log=None))) == 2 and (tmp_path / "LEVIR-MCI-dataset").is_dir(), "beside the zip by default"


def test_a_second_zip_for_the_same_place_is_unpacked_and_not_taken_for_the_first(tmp_path):
    place = tmp_path / "unpacked"
    first = zipped(levir_folder(tmp_path / "cc", masks=False), tmp_path / "Levir-CC.zip")
    second = zipped(levir_folder(tmp_path / "mci"), tmp_path / "LEVIR-MCI.zip")
    assert levir.find(first, place).kind == "LEVIR-CC"
    stamp = (place / "LEVIR-MCI-dataset" / "LevirCCcaptions.json").stat()
    assert levir.find(first, place).kind == "LEVIR-CC", "unpacked once"
    assert (place / "LEVIR-MCI-dataset" / "LevirCCcaptions.json").stat().st_mtime_ns == stamp.st_mtime_ns
    assert levir.find(second, place).kind == "LEVIR-MCI" and levir.find(first, place).kind == "LEVIR-CC", "nothing of the other is left"
    assert not list(place.rglob("label"))
    second.write_bytes(b"PK" + second.read_bytes()[2:2000])
    with pytest.raises(UserError, match="neither a folder nor a zip"):
        levir.find(second, place)
    (place / "unpacked_from.json").unlink()
    with pytest.raises(UserError, match="is in the way"):
        levir.find(first, place)
    assert (place / "LEVIR-MCI-dataset" / "LevirCCcaptions.json").is_file(), "somebody's own folder is never deleted"


def test_arrow_folders(tmp_path):
    rows = [row(0, [6.0, 4.0, 18.0, 12.0]), row(1, None, "the scene is the same as before"), row(2, [0.0, 0.0, 24.0, 24.0]), row(3)]
    root = arrow_folder(tmp_path / "arrow", rows, ("train", "val", "test"))
    layout = levir.find(root)
    assert (layout.kind, layout.boxes, layout.splits) == ("Arrow", "given", {"train": 4, "val": 4, "test": 4})
    assert "pixels, known by a value above 1" in layout.describe()
    found = list(levir.read(root, "test", log=None))
    assert [p.state for p in found] == ["localisable", "unchanged", "localisable", "not localisable"]
    assert np.allclose(found[0].box_main, BOX) and found[0].box_source == "given" and found[2].box_main.tolist() == [0, 0, 1, 1]
    assert np.array_equal(found[3].after, picture(7)) and found[0].captions == ("a house is built",) and found[0].mask is None
    assert levir.ensure_store(root, "train", tmp_path / "store", workers=1)[0].box_source == "given"


def test_arrow_without_splits_is_divided_and_says_so(tmp_path):
    root = arrow_folder(tmp_path / "levir-cc-train", [row(i, [0.25, 0.25, 0.5, 0.5]) for i in range(20)])
    layout = levir.find(root)
    assert layout.splits == {"train": 16, "val": 2, "test": 2} and "all is train" in layout.describe()
    assert layout.describe().count("2 of train's pairs divided off here, by a hash of the names") == 2
    assert "no value is above 1" in layout.describe()
    assert {e.name for e in layout.entries} == {f"levir-cc-train_{i:06d}" for i in range(20)}, "each in one split"
    again = levir.find(arrow_folder(tmp_path / "elsewhere" / "levir-cc-train", [row(i, [0.25, 0.25, 0.5, 0.5]) for i in range(20)]))
    assert [(e.name, e.split) for e in again.entries] == [(e.name, e.split) for e in layout.entries], "the same on every machine"


def test_huggingfaces_validation_is_val_and_what_is_lacking_comes_off_train(tmp_path):
    rows = [row(i) for i in range(20)]
    layout = levir.find(arrow_folder(tmp_path / "hf", rows, ("train", "validation")))
    assert layout.splits == {"train": 18, "val": 20, "test": 2} and "its split 'validation' is val here" in layout.describe()
    assert {e.name[:5] for e in layout.of("val")} == {"valid"} and "no test in the source: 2 of train's" in layout.describe()
    assert levir.find(arrow_folder(tmp_path / "whole", rows[:3], ("train", "val", "test"))).splits == {"train": 3, "val": 3, "test": 3}
    assert levir.find(arrow_folder(tmp_path / "tested", rows, ("train", "test"))).splits == {"train": 18, "val": 2, "test": 20}
    assert levir.find(arrow_folder(tmp_path / "test only", rows[:3], ("test",))).splits == {"test": 3}
    for n, splits in ((1, {"train": 1}), (2, {"train": 1, "val": 1}), (3, {"train": 1, "val": 1, "test": 1})):
        assert levir.find(arrow_folder(tmp_path / f"few{n}", rows[:n])).splits == splits
    with pytest.raises(UserError, match="several validation splits"):
        levir.find(arrow_folder(tmp_path / "two", rows[:3], ("train", "val", "validation")))


def test_stores_of_another_data_set_are_removed_or_refused(tmp_path):
    first, said = levir_folder(tmp_path / "first"), []
    (first / "aerial.json").write_text('{"made_by": "a test"}')
    stores = levir.ensure_stores(levir.find(first), tmp_path / "store", workers=1)
    (tmp_path / "store" / "levir_val.prepared").mkdir()
    (tmp_path / "store" / "levir_notes").mkdir()  # no store
    assert levir.of_one_source(stores["train"]) is stores["train"]
    rows = [row(i, [0.25, 0.25, 0.5, 0.5]) for i in range(3)]
    own = levir.find(arrow_folder(tmp_path / "own", rows, ("test",)))
    mixed = levir.ensure_store(own, "test", tmp_path / "store" / "levir_test", workers=1)
    for pairs in (mixed, stores["train"]):
        with pytest.raises(UserError, match="(?s)are of different data.*Arrow.*notebook 03"):
            levir.of_one_source(pairs)
    found = levir.ensure_stores(own, tmp_path / "store", workers=1, log=said.append)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["levir_notes", "levir_test"]
    assert ["levir_train" in line or "levir_val" in line for line in said if line.startswith("removed: ")] == [True, True]
    assert levir.of_one_source(found["test"]).column("state") == ["localisable"] * 3


def test_an_arrow_row_without_a_partner_or_with_a_torn_one_is_named_and_never_filled(tmp_path):
    good, torn = [row(i) for i in range(102)], row(3)["image2"]["bytes"][:-40]
    cases = {"after: row 3 of data-00000": {"bytes": None, "path": "b.png"}, "holds no picture in its column image2": None,
             "after: a torn picture": {"bytes": torn, "path": None}}  # fmt: skip
    for i, (said, lacking) in enumerate(cases.items()):
        rows, told = [*good[:3], good[3] | {"image2": lacking}, *good[4:]], []
        pairs = levir.ensure_store(arrow_folder(tmp_path / f"raw{i}", rows, SPLITS), "train", tmp_path / f"store{i}", workers=1,
                                   log=told.append)  # fmt: skip
        assert len(pairs) == 101 and list(pairs.store.meta["left_out"]) == ["train_000003"]
        assert any("left out: train_000003" in line and said in line for line in told), told
        with pytest.raises(UserError, match="train_000003"):
            levir.ensure_store(arrow_folder(tmp_path / f"few{i}", rows[:8], SPLITS), "train", tmp_path / "none", workers=1)
    assert not (tmp_path / "none").exists()


def test_boxes_that_are_all_the_whole_picture_are_not_used(tmp_path):
    root = arrow_folder(tmp_path / "constant", [row(i, [0.0, 0.0, float(SIZE), float(SIZE)]) for i in range(3)], SPLITS)
    assert "localises nothing" in levir.find(root).describe()
    assert [p.state for p in levir.read(root, "train", log=None)] == ["not localisable"] * 3


def test_plain_folders_with_json(tmp_path):
    for i in range(3):
        for date in ("old", "now"):
            (tmp_path / date).mkdir(exist_ok=True)
            (tmp_path / date / f"{i}.png").write_bytes(encode_png(picture(i)))
    records = [{"image": f"old/{i}.png", "image2": f"now/{i}.png", "caption": ["a road", "a path"], "bbox": [6, 4, 18, 12], "split": "test"}
               for i in range(3)]  # fmt: skip
    (tmp_path / "annotations.json").write_text(json.dumps(records))
    found = list(levir.read(tmp_path, "test", log=None))
    assert [p.name for p in found] == ["now/0", "now/1", "now/2"] and found[0].captions == ("a road", "a path")
    assert np.allclose(found[0].box_main, BOX) and found[0].state == "localisable"
    for wrong, said in (({"image": "../secret.png"}, "outside its own folder"), ({"split": None}, "have no split")):
        (tmp_path / "annotations.json").write_text(json.dumps([*records[:2], records[2] | wrong]))
        with pytest.raises(UserError, match=said):
            levir.find(tmp_path)
    (tmp_path / "annotations.json").write_text(json.dumps([*records[:2], records[2] | {"image2": "now/9.png"}]))
    assert levir.find(tmp_path).entries[2].problem == "no file now/9.png"


def test_a_data_set_of_ones_own(tmp_path):
    own = (levir.pair(f"field_{i}", "train", picture(i), picture(i + 9), ["a barn is built"], box=BOX if i else None) for i in range(3))
    pairs = levir.write_store(own, tmp_path / "own", {"source": "fields"})
    assert pairs.column("state") == ["not localisable", "localisable", "localisable"] and pairs.store.meta["source"] == "fields"
    assert levir.state_table({"train": pairs})[1]["train"]["changed | box"] == 2 and pairs[2].split == "train"
    wrong = [({"box": BOX * SIZE}, "a wrong box"), ({"captions": []}, "no caption"), ({"captions": [*CHANGE, NO_CHANGE[0]]}, "1 of its"),
             ({"mask": grey_mask(True)[..., 0]}, "a wrong mask"), ({"mask": np.zeros((4, 4), np.uint8)}, "a wrong mask")]  # fmt: skip
    for given, said in wrong:
        with pytest.raises(UserError, match=f"field: {said}"):
            levir.pair("field", "train", picture(0), picture(1), **({"captions": CHANGE} | given))


# --- what bad input gets ------------------------------------------------------------------------------------------------------------


def flipped_bytes(data: bytes) -> bytes:
    """Of its right length, and wrong in the middle: a PNG's own check sum tells."""
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0x5A for byte in data[middle : middle + 4]) + data[middle + 4 :]


BREAK = {
    "no file B/train_000003.png": lambda root, a, b, label: b.unlink(),
    "no file label/train_000003.png": lambda root, a, b, label: label.unlink(),
    "the dates differ in size: 24x24 and 12x12": lambda root, a, b, label: b.write_bytes(encode_png(picture(1, 12))),
    "12x12, others are 24x24": lambda root, a, b, label: [
        file.write_bytes(encode_png(np.zeros((12, 12, 3), np.uint8))) for file in (a, b, label)
    ],
    "the mask is 12x12": lambda root, a, b, label: label.write_bytes(encode_png(np.zeros((12, 12, 3), np.uint8))),
    r"the mask holds the values \[77\]": lambda root, a, b, label: label.write_bytes(encode_png(np.full((SIZE, SIZE, 3), 77, np.uint8))),
    "a coloured picture, not grey": lambda root, a, b, label: label.write_bytes(encode_png(picture(5))),
    "after: a torn picture": lambda root, a, b, label: b.write_bytes(b.read_bytes()[:-40]),
    "mask: a torn picture": lambda root, a, b, label: label.write_bytes(flipped_bytes(label.read_bytes())),
    "before: a torn picture": lambda root, a, b, label: a.write_bytes(b""),
    "1 of its 5 captions say that nothing": lambda root, a, b, label: edit(
        root, lambda images: images[1]["sentences"][2].update(raw=" no change has occurred .")
    ),
    "changeflag 0, but its captions say a change": lambda root, a, b, label: edit(root, lambda images: images[1].update(changeflag=0)),
    "changeflag 'yes' is neither 0 nor 1": lambda root, a, b, label: edit(root, lambda images: images[1].update(changeflag="yes")),
    "an empty caption": lambda root, a, b, label: edit(root, lambda images: images[1]["sentences"][0].pop("raw")),
    "4 captions, not 5": lambda root, a, b, label: edit(root, lambda images: images[1]["sentences"].pop()),
    "no caption": lambda root, a, b, label: edit(root, lambda images: images[1].update(sentences=[])),
}


@pytest.mark.parametrize("why", BREAK)
def test_one_bad_pair_of_many_is_left_out_and_named_and_of_few_it_stops_the_run(tmp_path, why):
    for count in (101, 8):
        root = levir_folder(tmp_path / str(count), train=count, val=1)
        BREAK[why](root, *(root / "images" / "train" / kind / "train_000003.png" for kind in ("A", "B", "label")))
        if count == 101:
            said = []
            pairs = levir.ensure_store(root, "train", tmp_path / "store", workers=1, log=said.append)
            assert len(pairs) == 100 and "train_000003" not in pairs.column("name")
            assert list(pairs.store.meta["left_out"]) == ["train_000003"] and any("left out: train_000003" in line for line in said)
        else:
            with pytest.raises(UserError, match=f"train_000003: .*{why}"):
                levir.ensure_store(root, "train", tmp_path / "few", workers=1)
            with pytest.raises(UserError, match=why):
                list(levir.read(root, "train", log=None))
            assert not (tmp_path / "few").exists() and not (tmp_path / "few.part").exists(), "nothing half-written"


def test_the_usual_size_is_that_of_most_pairs_not_of_the_first(tmp_path):
    root = levir_folder(tmp_path / "raw", train=150, val=1)
    for kind in ("A", "B", "label"):
        (root / "images" / "train" / kind / "train_000001.png").write_bytes(encode_png(np.zeros((12, 12, 3), np.uint8)))
    pairs = levir.ensure_store(root, "train", tmp_path / "store", workers=1)
    assert len(pairs) == 149 and pairs.store.meta["left_out"] == {"train_000001": "12x12, others are 24x24"}
    entries = levir.find(root).of("train")
    (root / "images" / "train" / "A" / "train_000001.png").write_bytes(b"torn")
    (root / "images" / "train" / "A" / "train_000003.png").unlink()
    assert levir.usual_size(entries[:3]) == "24x24" and levir.usual_size(entries[:2]) is None


def test_wrong_structures_are_refused(tmp_path):
    with pytest.raises(UserError, match="nothing at that path"):
        levir.find(tmp_path / "none")
    with pytest.raises(UserError, match="no bi-temporal data"):
        levir.find(tmp_path)
    root = levir_folder(tmp_path / "a")
    with pytest.raises(UserError, match="no split 'test'"):
        levir.ensure_store(root, "test", tmp_path / "store")
    edit(root, lambda images: images[2].pop("split"))
    with pytest.raises(UserError, match=r"LevirCCcaptions.json: images\[2\] has no split"):
        levir.find(root)
    twice = levir_folder(tmp_path / "b")
    edit(twice, lambda images: images.append(images[0]))
    with pytest.raises(UserError, match="names pairs twice"):
        levir.find(twice)
    outside = levir_folder(tmp_path / "c")
    edit(outside, lambda images: images[0].update(filename="../../x.png"))
    with pytest.raises(UserError, match="outside its own folder"):
        levir.find(outside)
    (levir_folder(tmp_path / "d") / "LevirCCcaptions.json").write_text("{")
    with pytest.raises(UserError, match="LevirCCcaptions.json cannot be read"):
        levir.find(tmp_path / "d")
    levir_folder(tmp_path / "e" / "one"), levir_folder(tmp_path / "e" / "two")
    with pytest.raises(UserError, match="several data sets"):
        levir.find(tmp_path / "e")
    with pytest.raises(UserError, match="lacks columns"):
        levir.find(arrow_folder(tmp_path / "f", [{"image": None, "caption": "x"}]))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("kind", ["../evil.png", "/etc/evil.png", "a\\..\\..\\evil.png", "C:/evil.png", "link", "torn", "text"])
def test_a_zip_that_leads_outside_or_is_torn_leaves_nothing(tmp_path, kind):
    path = tmp_path / "here" / "bad.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("good.txt", "good " * 100)
        if kind == "link":
            info = zipfile.ZipInfo("link")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, "/etc/passwd")
        elif kind not in ("torn", "text"):
            file.writestr(kind, "evil")
    if kind == "torn":
        data = bytearray(path.read_bytes())
        data[45:60] = bytes(15)
        path.write_bytes(data)
    if kind == "text":
        path.write_text("not a zip")
    said = {"link": "holds a link", "torn": "cannot be unpacked", "text": "neither a folder nor a zip"}
    with pytest.raises(UserError, match=said.get(kind, "outside its own folder")):
        levir.find(path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["bad.zip"]


# --- CLIP's preprocessing -----------------------------------------------------------------------------------------------------------


def test_clip_pixels_are_those_of_transformers():
    pytest.importorskip("transformers")  # only where it is installed: .ci/other-pythons runs this file without
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    except ModuleNotFoundError:  # transformers 5.0, Kaggle's: the same under its older name
        from transformers import CLIPImageProcessor as CLIPImageProcessorPil

    pictures = np.stack([picture(i, 256) for i in range(2)])
    pictures[1, 40:200, 60:90] = (255, 0, 30)
    theirs = CLIPImageProcessorPil()(list(pictures), return_tensors="np")["pixel_values"]
    ours = clip_pixels(pictures)
    assert ours.shape == (2, 3, 224, 224) and ours.dtype == np.float32 and np.abs(ours - theirs).max() < 2e-6
    assert clip_pixels(pictures, 64).shape == (2, 3, 64, 64) and clip_pixels(pictures[:0]).shape == (0, 3, 224, 224)
    for wrong in (pictures[0], pictures.astype(np.float32), pictures[:, :100], np.zeros((1, 8, 8, 1), np.uint8)):
        with pytest.raises(UserError, match="square RGB pictures"):
            clip_pixels(wrong)


def test_pairs_open_where_there_is_no_store(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        Pairs(tmp_path / "none")
