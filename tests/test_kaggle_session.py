"""A session ends in time, without an error, and the next one goes on from its output. Run: pytest tests/test_kaggle_session.py"""

import errno
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from repro import clock, notebooks
from repro.kaggle import checks, earlier, inputs, session, summary
from repro.machine import UserError

MOUNTS = ("{slug}", "notebooks/somebody/{slug}", "datasets/somebody/{slug}")


@pytest.fixture
def kaggle(kaggle, monkeypatch):
    """As every test of Kaggle has it, with a library that has a name, and packages that are not looked at."""
    monkeypatch.setenv("REPRO_BUNDLE", "library-1")
    monkeypatch.setattr(session.environment, "ensure", lambda *rest: {})
    return kaggle


def attach(root: Path, layout: str = MOUNTS[0], slug: str = "my-notebook") -> Path:
    """What is in working/ becomes an input, as Kaggle mounts a notebook's output; an empty working/ takes its place."""
    place = root / "input" / layout.format(slug=slug)
    place.parent.mkdir(parents=True, exist_ok=True)
    (root / "working").rename(place)
    (root / "working").mkdir()
    return place


# --------------------------------------------------------------------------------------------------- simulated sessions


class Stages:
    """Sections of items with known needs, on a clock that goes on only when they work. What is done is one file a section."""

    def __init__(self, draw: random.Random, monkeypatch):
        self.time, self.log = [1e9], []
        self.needs = {f"{i:02}_part": [draw.uniform(1, 100) for _ in range(draw.randint(1, 60))] for i in range(6)}
        monkeypatch.setattr(clock, "now", lambda: self.time[0])

    def work(self, kit, name: str) -> None:
        path = kit.work / f"{name}.txt"
        done = len(path.read_text().split()) if path.is_file() else 0
        for i in range(done, len(self.needs[name])):
            clock.check(needed=self.needs[name][i])
            self.time[0] += self.needs[name][i]
            self.log.append((name, i))
            with open(path, "a") as file:
                file.write(f"{i}\n")

    def session(self, hours: float) -> tuple[session.Session, list[str]]:
        """One session from begin to finish; the sections that it worked on."""
        kit, begun = session.begin("smoke", " ".join(self.needs), hours), []
        try:
            for name in kit.sections:
                kit.section(name)
                if not kit.skipping:
                    begun.append(name)
                    self.work(kit, name)
        except clock.OutOfTime as error:
            kit.stop(str(error))
        kit.finish()
        return kit, begun


def test_fifty_sessions_of_random_length_end_in_time_and_each_goes_on(kaggle, monkeypatch, capsys):
    draw, sessions, chains, cut = random.Random(8), 0, 0, 0
    while sessions < 50:
        stages, finished, number = Stages(draw, monkeypatch), set(), 0
        for folder in ("input", "working"):
            shutil.rmtree(kaggle / folder)
            (kaggle / folder).mkdir()
        while len(finished) < len(stages.needs):
            began = stages.time[0]
            stages.time[0] += (set_up := draw.uniform(5, 120))  # the image, the packages
            monkeypatch.setattr(session, "began", lambda began=began: began)
            seconds = set_up + draw.uniform(150, 3000)
            kit, begun = stages.session(seconds / 3600)
            number += 1
            assert stages.time[0] <= began + seconds  # 60 s over it are allowed; with known needs it is never over
            record = json.loads((kit.work / "sections.json").read_text())
            assert record["session"] == number and finished.isdisjoint(begun)
            cut += "cut" in record["state"].values()
            finished = {name for name, state in record["state"].items() if state == "finished"}
            if draw.random() < 0.5:  # older outputs are removed, or stay attached
                shutil.rmtree(kaggle / "input")
                (kaggle / "input").mkdir()
            attach(kaggle, MOUNTS[number % 3], f"version-{number}")
        chains, sessions = chains + 1, sessions + number
        assert stages.log == [(name, i) for name, needs in stages.needs.items() for i in range(len(needs))]
        assert sum(record["seconds"].values()) == pytest.approx(sum(map(sum, stages.needs.values())), abs=1)
    assert chains > 2 and cut > 20
    capsys.readouterr()


# ------------------------------------------------------------------------------------- real sessions, in a notebook's kernel


BEGIN = """from __future__ import annotations
import os, time
from repro import clock
from repro.kaggle import session

session.internet, session.gpus, session.environment.ensure = lambda: False, lambda: [], lambda *rest: {}
session.LEAST, clock.RESERVE = 0.5, 0.3
hours = (clock.now() - session.began() + SECONDS) / 3600
kit = session.begin("smoke", "00_a 01_b 02_c", hours, parameters={"seed": 0})

def steps(name, total):
    path = kit.work / f"{name}.txt"
    while (done := len(path.read_text().split()) if path.is_file() else 0) < total:
        clock.check(0.1)
        time.sleep(0.1)
        with open(path, "a") as file:
            file.write(f"{done}\\n")
    return f"{name}: {total} steps"
"""
CELLS = [
    BEGIN,
    'kit.section("00_a")',
    'steps("a", 2)',
    "from PIL import Image\n(kit.work / 'figures').mkdir()\nImage.new('RGB', (8, 8)).save(kit.work / 'figures' / 'dot.png')\n6 * 7;",
    "from __future__ import annotations\nerror = 6 * 7\nerror",
    "%%time\nsteps('a', 2)",
    "%timeit -q -n 2 -r 1 6 * 7",
    'kit.section("01_b")',
    'print("b begins")\nsteps("b", 50)',
    "print('after b')\nsteps('b', 50)",
    'kit.section("02_c")',
    "steps('c', 1)",
    "kit.finish()",
    "'free again'",
]


def run_all(root: Path, seconds: float) -> list[list[dict]]:
    """A notebook of CELLS by nbclient, which raises where a cell ends with an error; the outputs of each cell."""
    from nbclient import NotebookClient

    made = new_notebook(cells=[new_code_cell(cell.replace("SECONDS", str(seconds))) for cell in CELLS])
    place = {"metadata": {"path": str(root / "working")}}
    NotebookClient(made, timeout=60, kernel_manager_class=notebooks.kernel_manager(), resources=place).execute()
    return [cell.outputs for cell in made.cells]


def text(outputs: list[dict]) -> str:
    return "".join(one.get("text", "") or one.get("data", {}).get("text/plain", "") for one in outputs)


def shown(outputs: list[dict]) -> list[str]:
    return [one["data"]["text/plain"] for one in outputs if one["output_type"] == "execute_result"]


def test_a_notebook_that_has_no_time_left_ends_well_and_the_next_goes_on(kaggle):
    first = run_all(kaggle, seconds=3)
    assert re.search(r"session: \S+ h from the start of this notebook's process, [23] s of them left", text(first[0]))
    assert shown(first[2]) == ["'a: 2 steps'"] and first[3] == [] and shown(first[4]) == ["42"]  # as IPython shows them, or not
    assert shown(first[5]) == ["'a: 2 steps'"] and "Wall time" in text(first[5]) and first[6] == []
    assert text(first[8]).startswith("b begins\n====") and "The session's time is over. 01_b is cut" in text(first[8])
    assert first[9] == first[10] == first[11] == [] and shown(first[13]) == ["'free again'"]
    said = text(first[12])
    assert re.search(r"00_a +\S+ s +finished\n +01_b +\S+ s +cut: the session's time is over\n +02_c +- +not begun\nleft: 01_b, 02_c", said)
    assert "to go on: attach this notebook's output as an input" in said
    assert "1 figures" in said and said.count("dot.png") == 0  # its caption is Markdown:
    pictures = [one["data"] for one in first[12] if one["output_type"] == "display_data"]
    assert [one.get("text/markdown") for one in pictures] == ["**figures/dot.png**", None] and "image/png" in pictures[1]
    done = len((kaggle / "working" / "smoke" / "b.txt").read_text().split())
    assert 0 < done < 50
    place = attach(kaggle, MOUNTS[1])
    second = run_all(kaggle, seconds=30)
    said = text(second[0])
    assert f"goes on with {place}/smoke, session 1" in said and "finished 00_a; cut 01_b (the session's time is over)" in said
    assert "00_a, finished in an earlier session" in text(second[1]) and second[2] == second[4] == second[5] == []
    assert shown(second[9]) == ["'b: 50 steps'"] and shown(second[11]) == ["'c: 1 steps'"]
    assert "all 3 sections are finished" in text(second[12])
    assert [int(i) for i in (kaggle / "working" / "smoke" / "b.txt").read_text().split()] == list(range(50))
    assert len([one for one in second[12] if "image/png" in one.get("data", {})]) == 1
    with zipfile.ZipFile(kaggle / "working" / "results.zip") as packed:
        record = json.loads(packed.read("smoke/sections.json"))
    assert record["packed"] and set(record["state"].values()) == {"finished"} and record["seconds"]["01_b"] >= 4.9


@pytest.fixture
def kernel(kaggle):
    """`run(code, when=(seconds, signal)) -> (status, text)` in one kernel."""
    from jupyter_client.manager import KernelManager

    class Here(KernelManager):
        kernel_spec = notebooks.kernel_manager()().kernel_spec

    manager = Here()
    manager.start_kernel(cwd=str(kaggle / "working"))
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    pid = manager.provisioner.process.pid

    def run(code: str, sent: int | None = None) -> tuple[str, str]:
        said = []

        def hear(message):
            content = message["content"]
            said.append(content.get("text") or content.get("data", {}).get("text/plain", "") or content.get("ename", ""))
            if sent and "now" in said[-1]:
                os.kill(pid, sent)

        reply = client.execute_interactive(code, timeout=60, output_hook=hear, allow_stdin=False)
        return reply["content"]["status"], "".join(said)

    yield run, manager
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_the_stop_button_an_error_and_sigterm(kernel, kaggle):
    run, manager = kernel
    state = lambda: json.loads((kaggle / "working" / "smoke" / "sections.json").read_text())["state"]
    assert run(BEGIN.replace("SECONDS", "600"))[0] == "ok"
    run('kit.section("00_a")')
    status, said = run("steps('a', 2)\nprint('now', flush=True)\nsteps('a', 300)", signal.SIGINT)
    assert status == "error" and "KeyboardInterrupt" in said
    assert "00_a: stopped by hand; what is done is on disk, left: 00_a, 01_b, 02_c\nto go on, run" in said
    assert state() == {"00_a": "cut"} and (kaggle / "working" / "smoke" / "a.txt").is_file()
    run('kit.section("00_a")')
    assert run("1 / 0") == ("error", "ZeroDivisionError") and state() == {"00_a": "failed"}
    assert run("steps('b', 1)") == ("ok", "'b: 1 steps'")  # an error of one cell is not the end of the session
    run('kit.section("01_b")')
    assert state() == {"00_a": "failed", "01_b": "begun"}
    status, said = run("steps('b', 2)\nprint('now', flush=True)\nsteps('b', 300)", signal.SIGTERM)
    assert status == "ok" and "This process was told to end (SIGTERM). 01_b is cut" in said and state()["01_b"] == "cut"
    assert run("steps('c', 1)") == ("ok", "") and not (kaggle / "working" / "smoke" / "c.txt").exists()
    status, said = run("kit.finish()")
    assert status == "ok" and "left: 00_a, 01_b, 02_c" in said and (kaggle / "working" / "results.zip").is_file()
    assert run(BEGIN.replace("SECONDS", "600"))[0] == "ok"
    run('kit.section("02_c")')
    assert run("clock.begin(-1)") == ("ok", "")  # a cell that asked for no time, and took it all
    status, said = run("print('never')")
    assert status == "ok" and "02_c is cut" in said and "never" not in said and state()["02_c"] == "cut"
    process = manager.provisioner.process
    process.send_signal(signal.SIGTERM)  # between cells it does what it always did
    assert process.wait(timeout=20) == -signal.SIGTERM


# ------------------------------------------------------------------------------------------------ going on, by its parts


def left_behind(root: Path, monkeypatch, **parameters) -> Path:
    """The work folder of an attached output: 00_a finished, 01_b cut; a store, a checkpoint, a raw file."""
    kit = session.begin("smoke", "00_a 01_b", 1, parameters=parameters)
    kit.calvin("")
    kit.section("00_a")
    made = ("store/training/meta/info.json", "train/step_1/model.safetensors", "runs/later/note.txt")
    for name in (*made, "calvin/training/raw.npz", "aerial.part/raw.png"):
        (kit.work / name).parent.mkdir(parents=True, exist_ok=True)
        (kit.work / name).write_text(f"content of {name}")
    kit.section("01_b")
    kit.stop("the session's time is over")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    kit.finish()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    return attach(root, MOUNTS[1]) / "smoke"


def files(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "sections.json")
    return {str(path.relative_to(folder)): path.read_text() for path in found}


def test_what_is_needed_is_copied_and_a_copy_that_was_cut_off_goes_on(kaggle, monkeypatch, capsys):
    place, work = left_behind(kaggle, monkeypatch), kaggle / "working" / "smoke"
    (place / "store" / "x.part").write_text("half")
    copyfile, copied = shutil.copyfile, []

    def torn(source, target):
        if len(copied) == 1:
            Path(target).write_text("con")
            raise OSError("cut off")
        copied.append(copyfile(source, target))

    monkeypatch.setattr(earlier.shutil, "copyfile", torn)
    with pytest.raises(OSError, match="cut off"):
        session.begin("smoke", "00_a 01_b")
    assert len(files(work)) == 2 and not (work / "sections.json").exists()
    monkeypatch.setattr(earlier.shutil, "copyfile", lambda source, target: copied.append(copyfile(source, target)))
    kit = session.begin("smoke", "00_a 01_b")
    wanted = {name: content for name, content in files(place).items() if "raw" not in name and not name.endswith(".part")}
    assert files(work) == wanted and len(copied) == len(wanted) == 3 and kit.done == ["00_a"]
    assert "; 1 were there" in capsys.readouterr().out
    (work / "runs" / "later" / "note.txt").write_text("longer by what this session has done")
    assert session.begin("smoke", "00_a 01_b").done == ["00_a"]  # Run All again, in the same session
    assert "nothing is copied" in capsys.readouterr().out and "longer" in (work / "runs" / "later" / "note.txt").read_text()
    shutil.move(place.parent, kaggle / "aside")  # a click too many, and back again
    session.begin("smoke", "00_a 01_b")
    shutil.move(kaggle / "aside", place.parent)
    session.begin("smoke", "00_a 01_b")
    assert "longer" in (work / "runs" / "later" / "note.txt").read_text()


def test_a_session_that_began_without_the_earlier_output_takes_it_over_when_it_is_attached(kaggle, monkeypatch):
    place, work = left_behind(kaggle, monkeypatch), kaggle / "working" / "smoke"
    shutil.move(place.parent, kaggle / "aside")
    assert session.begin("smoke", "00_a 01_b").done == []
    other = work / "train" / "step_1" / "model.safetensors"
    other.parent.mkdir(parents=True)
    other.write_text("C" + (kaggle / "aside" / "smoke" / "train" / "step_1" / "model.safetensors").read_text()[1:])  # the same size
    shutil.move(kaggle / "aside", place.parent)
    kit = session.begin("smoke", "00_a 01_b")
    wanted = {name: content for name, content in files(place).items() if "raw" not in name}
    assert kit.done == ["00_a"] and files(work).items() >= wanted.items()


def test_prepared_pictures_lie_on_a_disk_that_is_not_saved_and_are_never_taken_over(kaggle, monkeypatch, capsys):
    import calvin_folder

    from repro.data import batches, calvin_import

    raw = calvin_folder.make(kaggle / "raw").parent
    kit = session.begin("smoke", "00_a 01_b")
    assert f"{kaggle / 'tmp'}: " in (said := capsys.readouterr().out) and "it is not saved" in said
    store = calvin_import.ensure_store(raw, "training", kit.work / "store" / "training", workers=1, log=lambda line: None)
    made = batches.prepared(store, batches.pictures, workers=1, log=lambda line: None)
    assert all(Path(array.filename).is_relative_to(kaggle / "tmp") for array in made.values())
    assert not list((kaggle / "working").rglob("*.prepared"))
    (old := kit.work / "store" / "training.prepared" / "0123").mkdir(parents=True)  # as earlier versions kept them
    (kit.work / "change.prepared").mkdir()
    for path in (old / "about.json", kit.work / "change.prepared" / "about.json"):
        path.write_text("{}")
    kit.finish()
    with zipfile.ZipFile(kaggle / "working" / "results.zip") as packed:
        assert packed.namelist() == ["smoke/sections.json"]
    place = attach(kaggle)
    kit = session.begin("smoke", "00_a 01_b")
    assert (kit.work / "store" / "training" / "meta" / "info.json").is_file() and list(place.rglob("*.prepared"))
    assert not list((kaggle / "working").rglob("*.prepared"))
    (kaggle / "other").mkdir()
    (kaggle / "other" / "tmp").write_text("a file in its place")
    assert checks.scratch(kaggle / "other").name == "repro-scratch" and "cannot be written" in capsys.readouterr().out


def test_a_disk_that_is_too_small_is_told_before_anything_is_copied(kaggle, monkeypatch):
    left_behind(kaggle, monkeypatch)
    usage = shutil.disk_usage(kaggle)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    with pytest.raises(UserError, match=r"does not fit into(.|\n)*1.1 GB free(.|\n)*found: 1.0 GB(.|\n)*du -sh /kaggle/working"):
        session.begin("smoke", "00_a 01_b")
    assert not (kaggle / "working" / "smoke").exists()


@pytest.mark.parametrize("content", ['{"profile": "smoke", "state": {"00', "[]", '{"profile": "smoke", "saved": "yesterday"}', "{}", None])
def test_a_damaged_output_stops_with_the_next_click(kaggle, monkeypatch, content):
    place = left_behind(kaggle, monkeypatch)
    (place / "sections.json").unlink() if content is None else (place / "sections.json").write_text(content)
    what = "sections.json is missing" if content is None else "is damaged"
    with pytest.raises(UserError, match=rf"{re.escape(str(place))}.*{what}(.|\n)*right panel, Input: remove it(.|\n)*Run All"):
        session.begin("smoke", "00_a 01_b")
    assert list((kaggle / "working").iterdir()) == []


def test_another_profile_results_zip_and_an_older_output_are_left_alone_and_that_is_said(kaggle, monkeypatch, capsys):
    old = left_behind(kaggle, monkeypatch)
    time.sleep(0.01)
    new = kaggle / "input" / "datasets" / "me" / "newer" / "smoke"
    shutil.copytree(old, new)
    about = json.loads((new / "sections.json").read_text())
    (new / "sections.json").write_text(json.dumps({**about, "saved": about["saved"] + 60, "session": 5}))
    zipped = kaggle / "input" / "unpacked"
    with zipfile.ZipFile(old.parent / "results.zip") as packed:
        packed.extractall(zipped)
    (kaggle / "input" / "book").mkdir()
    (kaggle / "input" / "book" / "sections.json").write_text('{"chapters": 9}')  # another thing of that name
    assert inputs.find(kaggle / "input").outputs == [new, old, zipped / "smoke"]
    kit = session.begin("smoke", "00_a 01_b")
    said = capsys.readouterr().out
    assert kit.earlier.folder == new and f"{old} (" in said and f"is older than {new}" in said
    assert f"{zipped / 'smoke'} is results.zip, unpacked" in said and json.loads((kit.work / "sections.json").read_text())["session"] == 6
    kit = session.begin("cpu", "00_a 01_b")
    assert kit.earlier is None and not kit.done and f"{new} is of profile smoke, this one is cpu: left alone" in capsys.readouterr().out


def test_an_output_of_other_parameters_or_another_library_is_used_and_said_so(kaggle, monkeypatch, capsys):
    place = left_behind(kaggle, monkeypatch, seed=0)
    for name in ("runs/row-1.json", "report.md"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("{}")
    kit = session.begin("smoke", "00_a 01_b", parameters={"seed": 1})
    assert kit.done == [] and (kit.work / "train" / "step_1").is_dir()
    assert "its parameters were others (seed 0 -> 1)" in capsys.readouterr().out
    assert (kit.work / "runs" / "row-1.json").is_file() and (kit.work / "report.md").is_file(), "what is not asked for again is kept"
    (kit.work / "runs" / "row-2.json").write_text("{}")
    monkeypatch.setenv("REPRO_BUNDLE", "library-2")
    kit = session.begin("smoke", "00_a 01_b", parameters={"seed": 0})
    assert kit.done == [] and "another library (library-1; this is library-2): its files are used" in capsys.readouterr().out
    assert (kit.work / "runs" / "row-2.json").is_file(), "what this work folder made since stays"
    shutil.rmtree(kit.work)
    kit = session.begin("smoke", "00_a 01_b", parameters={"seed": 0})
    assert not [*kit.work.glob("runs/*.json"), *kit.work.glob("report.*")], "records of another library never stand beside new ones"
    assert "its files are used but for its records and report" in capsys.readouterr().out


def test_a_stand_in_and_real_data_are_never_mixed(kaggle, monkeypatch, capsys):
    import calvin_folder

    left_behind(kaggle, monkeypatch)
    for split in inputs.SPLITS:
        calvin_folder.make(kaggle / "input" / "robots", split)
    kit = session.begin("smoke", "00_a 01_calvin_data")
    assert json.loads((kit.work / "sections.json").read_text())["data"] == {"CALVIN": "embedded"}  # also if it is cut down right now
    with pytest.raises(UserError, match=r"other data than is here now(.|\n)*a stand-in for CALVIN(.|\n)*to go on: remove CALVIN"):
        kit.calvin("")
    place = kaggle / "input" / MOUNTS[1].format(slug="my-notebook") / "smoke" / "sections.json"
    about = {**json.loads(place.read_text()), "data": {"CALVIN": "real"}}
    place.write_text(json.dumps(about))
    assert session.begin("smoke", "00_a 01_calvin_data").calvin("") == str(kaggle / "input" / "robots")
    shutil.rmtree(kaggle / "input" / "robots")
    with pytest.raises(UserError, match=r"CALVIN was attached or fetched(.|\n)*to go on: attach CALVIN"):
        session.begin("smoke", "00_a 01_calvin_data").calvin("")
    place.write_text(json.dumps({**about, "state": {"00_a": "finished", "01_calvin_data": "finished"}}))
    capsys.readouterr()
    assert session.begin("smoke", "00_a 01_calvin_data 02_b").calvin("", episodes=9, url="http://nowhere") == ""  # nothing is fetched again
    said = capsys.readouterr().out
    assert "01_calvin_data was finished in an earlier session, and its store is here" in said and "stands in" not in said


def test_data_are_not_mixed_within_one_live_session_either(kaggle, capsys):
    import calvin_folder

    kit = session.begin("smoke", "00_a 01_calvin_data")
    kit.calvin("")
    kit.section("00_a")
    for split in inputs.SPLITS:
        calvin_folder.make(kaggle / "input" / "robots", split)
    assert session.begin("smoke", "00_a 01_calvin_data").calvin("")  # no data were read yet
    shutil.move(kaggle / "input" / "robots", kaggle / "aside")
    kit = session.begin("smoke", "00_a 01_calvin_data")
    kit.calvin("")
    kit.section("01_calvin_data")
    for _ in range(2):  # the second time as well
        shutil.move(kaggle / "aside", kaggle / "input" / "robots")
        kit = session.begin("smoke", "00_a 01_calvin_data")
        for given in ("", str(kaggle / "input" / "robots")):
            with pytest.raises(UserError, match=r"other data(.|\n)*smoke\)(.|\n)*a stand-in for CALVIN(.|\n)*remove CALVIN(.|\n)*!rm -r"):
                kit.calvin(given)
        shutil.move(kaggle / "input" / "robots", kaggle / "aside")
    session.begin("smoke", "00_a 01_calvin_data").calvin("")
    place = kaggle / "input" / "last" / "smoke" / "sections.json"  # another session's, of real data
    place.parent.mkdir(parents=True)
    own = json.loads((kaggle / "working" / "smoke" / "sections.json").read_text())
    place.write_text(json.dumps({**own, "saved": own["saved"] - 60, "data": {"CALVIN": "real"}}))
    with pytest.raises(UserError, match=r"made of other data than(.|\n)*!rm -r"):
        session.begin("smoke", "00_a 01_calvin_data")


def full(*rest, **more):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_section_s_models_leave_the_gpu_when_it_ends(kaggle, monkeypatch):
    import torch

    from repro.kaggle import cells

    models = {"gaze": torch.nn.BatchNorm1d(3)}  # parameters and buffers, below any name
    held = [*models["gaze"].parameters(), *models["gaze"].buffers()]
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    monkeypatch.setattr(cells, "_on_gpu", lambda tensor: any(tensor is one for one in held))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: torch.full_like(self, 7))
    kit = session.begin("smoke", "00_a 01_b")
    kit.section("00_a")
    kit.section("01_b")
    assert not emptied and (models["gaze"].weight == 1).all()  # no context: nothing to free
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    kit.finish()
    assert emptied and all((one == 7).all() for one in held) and len(held) == 5


def test_a_disk_that_fills_up_ends_no_session(kaggle, monkeypatch, capsys):
    kit = session.begin("smoke", "00_a 01_b")
    kit.section("00_a")
    before = (kit.work / "sections.json").read_text()

    def half(path, content):
        path.with_suffix(".part").write_text("{")
        full()

    with monkeypatch.context() as disk:
        disk.setattr(earlier.freshness, "write", half)
        kit.failed("OSError")
        kit.interrupted()
        kit.stop("the session's time is over")
    assert capsys.readouterr().out.count("sections.json could not be written ([Errno 28] No space left on device)") == 3
    assert (kit.work / "sections.json").read_text() == before and [path.name for path in kit.work.iterdir()] == ["sections.json"]


def test_finish_says_what_it_could_not_write_and_goes_on(kaggle, monkeypatch, capsys):
    kit = session.begin("smoke", "00_a")
    kit.section("00_a")
    (kit.work / "runs").mkdir()
    (kit.work / "runs" / "torn.json").write_text("{")
    kit.finish()
    said = capsys.readouterr().out
    assert "the report could not be made: " in said and "torn.json is not a run record" in said and "all 1 sections are finished" in said
    with zipfile.ZipFile(kaggle / "working" / "results.zip") as packed:
        assert sorted(packed.namelist()) == ["smoke/runs/torn.json", "smoke/sections.json"]
    (kaggle / "working" / "results.zip").unlink()
    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    monkeypatch.setattr(earlier.freshness, "write", full)
    kit.finish()
    said = capsys.readouterr().out
    assert "results.zip could not be made: [Errno 28]" in said and "sections.json could not be written" in said
    assert "all 1 sections are finished\nresults.zip was not written" in said
    assert [path.name for path in (kaggle / "working").iterdir()] == ["smoke"]


def test_only_sections_up_to_the_first_unfinished_one_are_passed_over(kaggle, monkeypatch):
    place = left_behind(kaggle, monkeypatch) / "sections.json"
    state = {"00_a": "finished", "01_b": "failed", "02_c": "finished"}
    place.write_text(json.dumps({**json.loads(place.read_text()), "state": state}))
    assert session.begin("smoke", "00_a 01_b 02_c").done == ["00_a"]


# --------------------------------------------------------------------------------------------------------- parameters


def test_the_end_counts_from_the_start_of_the_process(kaggle, monkeypatch, capsys):
    import psutil

    assert session.began() == psutil.Process().create_time() <= time.time()
    monkeypatch.setattr(session, "began", lambda: clock.now() - 1800)
    session.begin("smoke", "00_a", 2)
    assert 5390 < clock.left() <= 5400 and "2 h from the start" in capsys.readouterr().out
    kit = session.begin("smoke", "00_a", 0.51)  # less than a minute: no section is begun
    with pytest.raises(clock.OutOfTime, match="were left before 00_a"):
        kit.section("00_a")
    assert "00_a" not in kit.state
    session.begin("smoke", "00_a", 0)
    assert clock.left() == float("inf") and "no end is set" in capsys.readouterr().out
    for hours, warned in ((12.0, True), (11.5, False)):
        session.begin("smoke", "00_a", hours)
        assert ("Kaggle ends a session after 12 h" in capsys.readouterr().out) == warned
    for hours in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="`session_hours`"):
            session.begin("smoke", "00_a", hours)


def test_one_run_on_both_gpus_or_runs_side_by_side(kaggle, monkeypatch, capsys):
    monkeypatch.setattr(session, "gpus", lambda: [("Tesla T4", (7, 5))] * 2)
    session.begin("smoke", "", gpus_per_run=2)
    assert os.environ["REPRO_PROCESSES"] == "2" and "each run on 2 GPUs" in capsys.readouterr().out
    session.begin("smoke", "")
    assert os.environ["REPRO_PROCESSES"] == "1" and "2 runs side by side, one a GPU" in capsys.readouterr().out
    for wrong, found in ((0, 2), (3, 2), (2, 1), (3, 0)):
        with pytest.raises(UserError, match=rf"`gpus_per_run`(.|\n)*{wrong}, with {found} GPUs(.|\n)*T4 x2"):
            checks.share_gpus(wrong, found)
    checks.share_gpus(2, 0)  # two processes of a CPU


def test_in_a_plain_process_nothing_is_registered_and_the_summary_names_its_files(kaggle, capsys):
    before = signal.getsignal(signal.SIGTERM)
    kit = session.begin("smoke", "00_a")
    assert signal.getsignal(signal.SIGTERM) == before
    (kit.work / "figures").mkdir()
    (kit.work / "figures" / "torn.png").write_text("no picture")
    (kit.work / "ablation.md").write_text("| a |\n![x](figures/torn.png)\n")
    capsys.readouterr()
    assert summary.show(kit.work) == (1, 1) and capsys.readouterr().out == "smoke/ablation.md\nsmoke/figures/torn.png\n"


def test_a_torn_figure_does_not_stop_the_summary(kaggle, monkeypatch, capsys):
    import IPython.display

    (work := kaggle / "working" / "smoke" / "figures").mkdir(parents=True)
    (work / "torn.png").write_text("no picture")
    summary.PIL.Image.effect_noise((64, 64), 80).save(work / "noise.png")
    (work.parent / "report.md").write_text("# Results\n\n| a |\n|---|\n| 1 |\n\n![x](figures/noise.png)\n")
    seen = []
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", lambda *things: seen.append([thing.data for thing in things]))
    assert summary.show(work.parent) == (2, 1)
    assert "figures/torn.png cannot be read" in capsys.readouterr().out
    assert [one[0].split("\n")[0] for one in seen] == ["**report.md**", "**figures/noise.png**"]
    assert "![" not in seen[0][0] and "| 1 |" in seen[0][0]
