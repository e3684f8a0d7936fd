"""Notebook 03's cells on a user's own data: with masks, without any, with given boxes. Run: pytest tests/test_levir_notebook.py"""

from pathlib import Path

import pytest
from fake_pairs import one
from levir_folder import levir_folder
from test_levir import arrow_folder, row

from repro.data import levir_boxes, levir_figures
from repro.data.levir import pair

CODE = (Path(__file__).parents[1] / "notebooks" / "03_levir_data.py").read_text()


def run(root: Path, work: Path, monkeypatch, difference: bool = False) -> dict:
    """The names that the notebook's cells leave, run in one go on `root`."""
    monkeypatch.setenv("REPRO_WORK", str(work.parent))
    code = CODE.replace('levir_root = ""', f"levir_root = {str(root)!r}").replace("difference = False", f"difference = {difference}")
    assert str(root) in code and f"difference = {difference}" in code
    names = {}
    exec(compile(code, "notebook 03", "exec"), names)
    return names


@pytest.mark.parametrize("difference", [False, True])
def test_levir_cc_itself_goes_through_and_says_what_it_lacks(tmp_path, monkeypatch, capsys, difference):
    names = run(levir_folder(tmp_path / "cc", train=6, val=4, masks=False), tmp_path / "smoke", monkeypatch, difference)
    shown = capsys.readouterr().out
    assert shown.count("has no pair with a box here: LEVIR-CC has captions alone") == 3 and "no box from a mask to compare with" in shown
    assert {path.name for path in (tmp_path / "smoke" / "figures").iterdir()} == {"levir_pairs.png", "levir_guesses.png"}
    assert names["own"].column("state") == ["not localisable"] * 3 and "3 pairs; not localisable None no box" in shown
    assert ({"diff"} <= set(names["pairs"].column("box_source"))) == difference


def test_levir_mci_and_given_boxes_show_all_there_is(tmp_path, monkeypatch, capsys):
    run(levir_folder(tmp_path / "mci", train=6, val=4), tmp_path / "smoke", monkeypatch)
    shown = capsys.readouterr().out
    assert "n 2   mean IoU with the box from the mask" in shown and "3 pairs; localisable given" in shown
    assert "no pair with a box" not in shown
    figures = {"levir_pairs.png", "levir_boxes.png", "levir_augment.png"}
    assert {path.name for path in (tmp_path / "smoke" / "figures").iterdir()} == figures
    root = arrow_folder(tmp_path / "arrow", [row(i, [0.25, 0.25, 0.5, 0.5]) for i in range(6)])
    names = run(root, tmp_path / "smoke", monkeypatch)
    shown = capsys.readouterr().out
    assert "no box from a mask to compare with" in shown and "box_main   n     4" in shown and "no guesses are shown" in shown
    assert set(names["stores"]) == {"train", "val", "test"}


def test_a_guessed_box_is_drawn_as_a_guess():
    shown = one(1, "train")
    found = pair("a", "train", shown.before, shown.after, ["a house"])
    figure = levir_figures.guess_sheet([found], title="Guessed")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["guessed by differencing, never scored"]
    assert figure.axes[0].get_title(loc="left").startswith("guessed; not localisable")
    box = levir_boxes.difference_box(shown.before, shown.after) * 64
    assert [patch.get_bbox().bounds for patch in figure.axes[1].patches] == [(box[0] - 0.5, box[1] - 0.5, *(box[2:] - box[:2]))] * 2
    assert found.box_main is None and not levir_figures.contact_sheet([found]).legends
