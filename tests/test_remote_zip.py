"""Parts of a remote zip, and CALVIN episodes out of one, against a server on this machine. Run: pytest tests/test_remote_zip.py"""

import contextlib
import json
import random
import re
import shutil
import struct
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import calvin_folder
import pytest

from repro import clock, freshness
from repro.data import calvin, calvin_frames, calvin_remote, remote_zip, stored
from repro.data.calvin_import import ensure_store, import_calvin
from repro.data.episodes import Store
from repro.data.remote_zip import DamagedMember, RemoteZip
from repro.data.resumable import ResumableWriter
from repro.kaggle import fetched, inputs, session
from repro.machine import UserError

ROOT = Path(__file__).resolve().parents[1]


class Server:
    """Files by name, served by ranges; counts what it sends. `fail(start, end)` -> status or None, asked before each answer."""

    def __init__(self):
        self.files, self.sent, self.asked, self.ranges, self.leads = {}, 0, [], True, {}  # leads: path -> where it redirects to
        self.fail = lambda start, end: None
        self.change = lambda start, data: data
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                content = outer.files.get(self.path)
                start, end = (int(part) for part in re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
                if self.path in outer.leads:
                    self.send_response(302)
                    self.send_header("Location", outer.leads[self.path])
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                status = 404 if content is None else outer.fail(start, end + 1)
                if status:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                data = outer.change(start, content[start : end + 1]) if outer.ranges else content
                self.send_response(206 if outer.ranges else 200)
                if outer.ranges:
                    self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                outer.asked.append((start, start + len(data)))
                with contextlib.suppress(OSError):
                    self.wfile.write(data)
                    outer.sent += len(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}{name}"

    def zip(self, name: str, folder, method=zipfile.ZIP_DEFLATED, comment: bytes = b"") -> str:
        """Serve `folder` as a zip under its own name inside; the address."""
        path = folder.parent / "served.zip"
        with zipfile.ZipFile(path, "w", method) as out:
            for file in sorted(folder.rglob("*")):
                out.write(file, file.relative_to(folder.parent))
            out.comment = comment
        self.files[name] = path.read_bytes()
        return self.url(name)


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def zip64(monkeypatch):
    """Make zipfile write zip64 records for anything above 1000 bytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)


@pytest.fixture(autouse=True)
def a_small_disk(monkeypatch):
    """These tests need a few MB: a machine with less than the usual reserve may run them."""
    for module in (calvin_remote, stored, fetched):
        monkeypatch.setattr(module, "SPARE", 0)


QUICK = {"waits": (0.01, 0.01), "sleep": lambda seconds: None}
TASKS = ("open_drawer", "lift_x", "turn_on_led")


@pytest.fixture
def raw(tmp_path):
    """task_X: twelve annotated episodes of six frames and three tasks in training, three in validation; nothing is noise-free."""
    root = tmp_path / "raw" / "task_X"
    for split, episodes, at in (("training", 12, 1000), ("validation", 3, 5000)):
        spans = [(at + 20 * i, at + 20 * i + 5) for i in range(episodes)]
        notes = [(a, b, TASKS[i % 3], f"do {TASKS[i % 3]}") for i, (a, b) in enumerate(spans)]
        calvin_folder.make(root, split, segments=[(a, b + 3) for a, b in spans], notes=notes, size=64, wrist=24)
    return root


# ----------------------------------------------------------------------------------------------------------- the zip


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("large", [False, True], ids=["zip", "zip64"])
def test_members_are_those_of_the_zip_and_nothing_else_is_sent(server, tmp_path, monkeypatch, method, large):
    if large:
        zip64(monkeypatch)
    folder = tmp_path / "in" / "data"
    folder.mkdir(parents=True)
    contents = {f"data/f{i}.bin": random.Random(i).randbytes(9000) + bytes(5000) for i in range(20)}
    for name, content in contents.items():
        (folder.parent / name).write_bytes(content)
    url = server.zip("/a.zip", folder, method, comment=b"a note" if not large else b"")
    whole = server.files["/a.zip"]
    assert (b"PK\6\6" in whole) == large
    archive = RemoteZip(url, **QUICK)
    wanted = archive.find(lambda name: name in ("data/f3.bin", "data/f4.bin", "data/f11.bin"))
    before = len(server.asked)
    assert {member.name: data for member, data in archive.read(wanted)} == {m.name: contents[m.name] for m in wanted}
    assert len(wanted) == 3 and len(server.asked) - before == 2  # two neighbours in one request, one by itself
    assert server.sent == archive.received < len(whole)
    packed = sum(zipfile.ZipFile(tmp_path / "in" / "served.zip").getinfo(member.name).compress_size for member in wanted)
    assert archive.taken == packed
    per_member = 30 + len("data/f11.bin") + 20  # a local header, and zip64's extra field
    assert archive.received - archive.index_bytes - 1 <= packed + 3 * per_member


def test_the_index_is_fetched_once_where_it_may_be_kept(server, raw, tmp_path):
    url = server.zip("/task_X.zip", raw)
    first = RemoteZip(url, tmp_path / "index", **QUICK)
    second = RemoteZip(url, tmp_path / "index", **QUICK)
    assert second.index == first.index and second.index_bytes < 100 < first.index_bytes
    server.files["/task_X.zip"] += b" "  # another file under the same address: what is kept is of the old one
    assert RemoteZip(url, tmp_path / "index", **QUICK).index_bytes >= first.index_bytes


def test_bad_addresses_and_files_are_refused_before_anything_large_is_sent(server, raw):
    url = server.zip("/task_X.zip", raw)
    server.files["/page.html"] = b"<html>" * 100_000
    for address, message in (
        (server.url("/none.zip"), "HTTP 404"),
        (server.url("/page.html"), "no whole zip"),
        ("ftp://x/y.zip", "no web address"),
    ):
        with pytest.raises(UserError, match=message):
            RemoteZip(address, **QUICK)
    assert server.sent < 200_000
    server.ranges = False
    with pytest.raises(UserError, match=r"cannot be read in parts(.|\n)*HTTP 200"):
        RemoteZip(url, **QUICK)


def test_a_broken_index_and_an_unknown_method_are_named(server, raw):
    url = server.zip("/task_X.zip", raw)
    good = server.files["/task_X.zip"]
    at = struct.unpack("<I", good[-6:-2])[0]  # where the index begins
    server.files["/task_X.zip"] = good[:at] + b"XXXX" + good[at + 4 :]
    with pytest.raises(UserError, match=r"no whole zip(.|\n)*XXXX"):
        RemoteZip(url, **QUICK)
    server.files["/task_X.zip"] = good[: at + 10] + struct.pack("<H", 14) + good[at + 12 :]
    with pytest.raises(UserError, match="method 14"):
        RemoteZip(url, **QUICK).find(lambda name: True)


def test_a_server_that_stumbles_is_asked_again_and_one_that_stays_down_is_reported(server, raw):
    url = server.zip("/task_X.zip", raw)
    left = [2]

    def stumble(start, end):
        left[0] -= 1
        return 503 if left[0] >= 0 else None

    server.fail, waits = stumble, []
    RemoteZip(url, waits=(1, 2), sleep=waits.append)
    assert waits == [1, 2]
    server.fail = lambda start, end: 503
    with pytest.raises(UserError, match="HTTP 503"):
        RemoteZip(url, **QUICK)


def test_an_address_it_was_led_to_that_expires_is_asked_for_anew(server):
    content = server.files["/signed?1"] = bytes(range(256))
    server.leads = {"/x": "/between", "/between": "/signed?1"}
    remote = remote_zip.Remote(server.url("/x"), **QUICK)
    server.leads.clear()  # what it was led to is asked directly
    assert remote.read(3, 90) == content[3:90]
    server.leads = {"/x": "/between", "/between": "/signed?2"}
    server.files["/signed?2"] = server.files.pop("/signed?1")
    true, paths, expired = server.http.RequestHandlerClass.do_GET, [], {"/signed?1"}

    def gone(handler):  # as a store of files answers for a signature of another hour
        paths.append(handler.path)
        if handler.path not in expired:
            return true(handler)
        handler.send_response(403)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.http.RequestHandlerClass.do_GET = gone
    assert remote.read(5, 200) == content[5:200]
    assert paths == ["/signed?1", "/x", "/between", "/signed?2"] and remote.url == server.url("/x")
    paths.clear()
    expired.add("/signed?2")
    with pytest.raises(UserError, match=r"/x cannot be read in parts(.|\n)*HTTP 403"):
        remote.read(5, 200)
    assert paths == ["/signed?2", "/x", "/between", "/signed?2"], "once"


# ------------------------------------------------------------------------------------------------------- the episodes


def digests(store: Store) -> dict[int, str]:
    """Content of each episode, by the annotation it was made of."""
    return {episode.info["annotation"]: store.digests[episode.index] for episode in store.episodes}


@pytest.mark.parametrize("large", [False, True], ids=["zip", "zip64"])
def test_what_is_fetched_is_what_an_import_of_the_whole_gives_for_at_most_its_own_bytes(server, raw, tmp_path, monkeypatch, large):
    if large:
        zip64(monkeypatch)
    url = server.zip("/task_X.zip", raw)
    archive = []
    monkeypatch.setattr(calvin_remote, "RemoteZip", lambda *a, **k: archive.append(RemoteZip(*a, **k)) or archive[0])
    stores = calvin_remote.fetch(url, tmp_path / "out", 4, log=lambda line: None, **QUICK)
    assert server.sent <= 1.05 * archive[0].taken + archive[0].index_bytes + 1
    assert server.sent < 0.75 * len(server.files["/task_X.zip"])
    for split, count in (("training", 4), ("validation", 3)):
        import_calvin(raw, split, tmp_path / "whole" / split, workers=1)
        whole, part = Store(tmp_path / "whole" / split), stores[split]
        assert len(part) == count and digests(part).items() <= digests(whole).items()
        assert {episode.task_id for episode in part.episodes} == set(TASKS)
        ours = {key: value for key, value in part.meta.items() if key not in ("partial", "hash", "source_fingerprint")}
        theirs = {key: value for key, value in whole.meta.items() if key not in ("dropped_annotations", "hash", "source_fingerprint")}
        assert ours == theirs
    assert stores["training"].meta["partial"] == {
        "url": url, "split": "training", "asked": 4, "seed": 0, "of": 12, "episodes": 4,
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["training", "validation"]
    sent = server.sent
    again = calvin_remote.fetch(url, tmp_path / "out", 4, **QUICK)
    assert server.sent == sent and again["training"].hash == stores["training"].hash
    with pytest.raises(UserError, match=r"is another store(.|\n)*'asked': 5"):
        calvin_remote.fetch(url, tmp_path / "out", 5, **QUICK)


def contents(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", ["line", "kill"])
def test_cut_anywhere_it_goes_on_and_gives_the_same_bytes(server, raw, tmp_path, monkeypatch, how):
    url = server.zip("/task_X.zip", raw)
    options = {"commit": 2, "log": lambda line: None, **QUICK}
    calvin_remote.fetch(url, tmp_path / "whole", 7, **options)
    undisturbed, server.asked[:] = len(server.asked), []
    if how == "kill":  # nothing is cleaned up
        monkeypatch.setattr(ResumableWriter, "__exit__", lambda self, kind, error, trace: kind is None and self.finish_alone())
        monkeypatch.setattr(
            ResumableWriter, "finish_alone", lambda self: super(ResumableWriter, self).__exit__(None, None, None), raising=False
        )
    frames, cuts = [], 0
    for last in range(6, 60):
        count = [0]

        def cut(start, end, count=count, last=last):
            count[0] += 1
            return 503 if count[0] > last else None

        server.fail = cut
        try:
            calvin_remote.fetch(url, tmp_path / "cut", 7, **options)
            break
        except UserError as error:
            assert "503" in str(error)
            cuts += 1
            part = tmp_path / "cut" / "training.part" / "progress.json"
            frames.append(json.loads(part.read_text())["episodes"] if part.is_file() else 0)
    assert cuts >= 3 and frames == sorted(frames) and 0 < frames[-1] < 7
    for split in ("training", "validation"):
        one, two = contents(tmp_path / "whole" / split), contents(tmp_path / "cut" / split)
        if how == "kill":
            assert one == two
        assert Store(tmp_path / "whole" / split).hash == Store(tmp_path / "cut" / split).hash
        assert one["meta/stats.json"] == two["meta/stats.json"]
        import_calvin(raw, split, tmp_path / "import" / split, workers=1)
        every, cut = Store(tmp_path / "import" / split), Store(tmp_path / "cut" / split)
        for episode in cut.episodes:  # the rows themselves, out of several data files
            theirs, ours = every.table(episode.info["annotation"]), cut.table(episode.index)
            assert ours.equals(theirs.select(ours.column_names)), episode
    assert undisturbed > 10


def test_the_next_session_goes_on_from_the_attached_output_of_the_last(server, raw, tmp_path, monkeypatch, capsys):
    url, store = server.zip("/task_X.zip", raw), tmp_path / "kaggle" / "input" / "notebooks" / "me" / "last" / "calvin_store"
    calvin_remote.fetch(url, tmp_path / "whole", 7, log=lambda line: None, **QUICK)
    whole, total, server.sent, count = server.sent, len(server.asked), 0, [0]

    def cut(start, end):
        count[0] += 1
        return 503 if count[0] > total - 3 else None

    server.fail = cut
    with pytest.raises(UserError, match="503"):
        calvin_remote.fetch(url, store, 7, log=lambda line: None, commit=2, **QUICK)
    first, server.sent, server.fail = server.sent, 0, lambda start, end: None
    assert json.loads((store / "training.part" / "progress.json").read_text())["episodes"] > 0
    (tmp_path / "kaggle" / "working").mkdir()
    attached = inputs.find(tmp_path / "kaggle" / "input")
    assert attached.fetching == [store] and attached.calvin_root() is None
    kit = session.Session("smoke", [], tmp_path / "kaggle" / "working" / "smoke", attached, {})
    got = Path(kit.calvin("", 7, url))
    assert got == tmp_path / "kaggle" / "working" / "calvin_store" and "goes on with" in capsys.readouterr().out
    assert Store(got / "training").hash == Store(tmp_path / "whole" / "training").hash
    assert server.sent < 0.9 * whole and first + server.sent < 1.3 * whole and (store / "training.part").is_dir()


def kit_of(root: Path, profile: str = "smoke", sections=("01_calvin_data", "02_b")) -> session.Session:
    (root / "working").mkdir(parents=True, exist_ok=True)
    return session.Session(profile, list(sections), root / "working" / profile, inputs.find(root / "input"), {})


def test_a_slow_server_does_not_overrun_the_session(server, tmp_path, monkeypatch):
    server.files["/x"] = bytes(range(256)) * 40
    remote = remote_zip.Remote(server.url("/x"), **QUICK)
    monkeypatch.setattr(remote_zip, "PIECE", 1000)
    assert remote.read(5, 10_005) == server.files["/x"][5:10_005] and remote.received == 10_001
    asked = []

    def check(needed=0.0):
        asked.append(needed)
        if len(asked) == 4:  # one before the request, then one a piece
            raise clock.OutOfTime("over")

    monkeypatch.setattr(remote_zip.clock, "check", check)
    with pytest.raises(clock.OutOfTime):
        remote.read(0, 10_000)
    assert remote.received < 10_001 + 4_000
    assert remote.read(0, 10_000) == server.files["/x"][:10_000]  # over a connection of its own


def test_what_was_fetched_lies_there_once_and_is_never_fetched_again(server, raw, tmp_path, capsys):
    url, root = server.zip("/task_X.zip", raw), tmp_path / "kaggle"
    kit = kit_of(root)
    got = kit.calvin("", 5, url)
    kit.section("01_calvin_data")
    ensure_store(got, "training", kit.work / "store" / "training", log=lambda line: None)
    kit._close("finished")
    assert Path(got).is_dir()  # half of it was copied only
    kit.section("01_calvin_data")
    ensure_store(got, "validation", kit.work / "store" / "validation", log=lambda line: None)
    kit.section("02_b")
    assert not Path(got).exists() and "holds a copy" in capsys.readouterr().out
    sent = server.sent
    again = kit_of(root).calvin("", 5, url)
    assert again == str(kit.work / "store") and server.sent == sent
    assert ensure_store(again, "training", kit.work / "store" / "training").hash == Store(kit.work / "store" / "training").hash
    assert kit_of(root, "cpu").calvin("", 5, url) == again and server.sent == sent  # of another profile
    assert kit_of(root).calvin("", 4, url) == got and server.sent > sent  # other episodes
    (root / "input" / "last").mkdir(parents=True)
    shutil.move(root / "working" / "smoke", root / "input" / "last" / "smoke")
    sent = server.sent
    assert kit_of(root, "cpu").calvin("", 5, url) == str(root / "input" / "last" / "smoke" / "store") and server.sent == sent


@pytest.mark.parametrize(("gb", "shared", "fits"), [(40, True, True), (20, True, 250), (20, False, 320), (3, True, 0)])
def test_episodes_that_would_not_fit_are_told_before_anything_is_fetched(server, tmp_path, monkeypatch, gb, shared, fits):
    for name in ("working", "tmp"):
        (tmp_path / "kaggle" / name).mkdir(parents=True)
    monkeypatch.setenv("REPRO_SCRATCH", str(tmp_path / "kaggle" / "tmp"))
    monkeypatch.setattr(fetched.shutil, "disk_usage", lambda place: SimpleNamespace(free=gb * 1e9))
    device = lambda path: SimpleNamespace(st_dev=shared or path.name)
    monkeypatch.setattr(fetched, "Path", lambda path: type("P", (type(tmp_path),), {"stat": device})(path))
    working = type("P", (type(tmp_path),), {"stat": device})(tmp_path / "kaggle" / "working")
    if fits is True:
        fetched.check_room("t4", working, 500, 12)
        return
    with pytest.raises(UserError, match=rf"500 episodes(.|\n)*28\.\d GB in (.|\n)*{f'calvin_episodes = {fits}' if fits else 'du -sh'}"):
        fetched.check_room("t4", working, 500, 12)
    assert list((tmp_path / "kaggle" / "working").iterdir()) == []
    fetched.check_room("cpu", working, 500, 0.5)  # tiny models prepare little


def test_the_readme_recommends_what_fits_into_one_small_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(fetched.shutil, "disk_usage", lambda place: SimpleNamespace(free=20e9))
    monkeypatch.setenv("REPRO_SCRATCH", "")
    (told,) = set(re.findall(r"calvin_episodes = (\d+)", (ROOT / "kaggle" / "README.md").read_text()))
    fetched.check_room("t4", tmp_path, int(told), 12)


def test_of_several_unfinished_fetches_the_session_s_own_is_gone_on_with_whole(server, raw, tmp_path, monkeypatch):
    url, root = server.zip("/task_X.zip", raw), tmp_path / "kaggle"
    calvin_remote.fetch(url, tmp_path / "whole", 5, log=lambda line: None, **QUICK)
    total, count = len(server.asked), [0]
    for name, most in (("a", total - 6), ("b", total - 2)):
        count[0] = 0
        server.fail = lambda start, end, most=most: 503 if (count.__setitem__(0, count[0] + 1) or count[0] > most) else None
        with pytest.raises(UserError, match="503"):
            calvin_remote.fetch(url, root / "input" / name / "calvin_store", 5, log=lambda line: None, commit=1, **QUICK)
    server.fail = lambda start, end: None
    kit = kit_of(root)
    stores = kit.attached.fetching
    assert [path.parent.name for path in stores] == ["a", "b"] and fetched.newest(stores, None) == stores[1]  # more of it is there
    own = SimpleNamespace(folder=root / "input" / "a" / "smoke")
    assert fetched.newest(stores, own) == stores[0]
    usage = fetched.shutil.disk_usage(root)
    with monkeypatch.context() as full:
        full.setattr(fetched.shutil, "disk_usage", lambda place: usage._replace(free=1000))
        full.setattr(fetched, "SPARE", 0)
        with pytest.raises(UserError, match="does not fit into"):
            kit.calvin("", 5, url)
    assert list((root / "working").iterdir()) == []
    copied, copyfile = [], shutil.copyfile

    def stopped(source, target):
        if len(copied) == 2:
            raise KeyboardInterrupt
        copied.append(copyfile(source, target))

    with monkeypatch.context() as cut:
        cut.setattr(stored.shutil, "copyfile", stopped)
        with pytest.raises(KeyboardInterrupt):
            kit.calvin("", 5, url)
    assert [path.name for path in (root / "working").iterdir()] == ["calvin_store.part"]
    assert inputs.find(root / "working").fetching == inputs.find(root / "working").stores == []
    got = Path(kit.calvin("", 5, url))
    assert Store(got / "training").hash == Store(tmp_path / "whole" / "training").hash
    assert [path.name for path in (root / "working").iterdir()] == ["calvin_store"]


def test_a_damaged_frame_is_asked_for_twice_left_out_and_counted(server, raw, tmp_path, monkeypatch):
    monkeypatch.setattr(calvin_frames, "DAMAGED_LIMIT", 0.05)
    url = server.zip("/task_X.zip", raw)
    member = next(m for m in RemoteZip(url, **QUICK).find(lambda name: name.endswith("episode_1003.npz") or name.endswith("1003.npz")))
    good, flips = server.files["/task_X.zip"], []
    spoilt = bytearray(good)
    spoilt[member.start + 200] ^= 0xFF

    def once(start, data):
        if start <= member.start < start + len(data) and not flips:
            flips.append(start)
            data = data[: member.start + 200 - start] + b"?" + data[member.start + 201 - start :]
        return data

    server.change = once  # on the way: the second time it is right
    ((_, content),) = RemoteZip(url, **QUICK).read([member])
    assert flips and content == (raw / "training" / "episode_0001003.npz").read_bytes()
    server.change, server.files["/task_X.zip"] = lambda start, data: data, bytes(spoilt)
    ((_, content),) = RemoteZip(url, **QUICK).read([member])
    assert isinstance(content, DamagedMember)
    lines = []
    stores = calvin_remote.fetch(url, tmp_path / "out", 12, log=lines.append, **QUICK)
    ((name, why),) = stores["training"].meta["damaged"].items()
    assert name == "episode_0001003.npz" and ("CRC-32" in why or "unpacked" in why)
    assert any(line.startswith(f"left out {name}") for line in lines)
    assert stores["training"].frames == 12 * 6 - 1
    monkeypatch.setattr(calvin_frames, "DAMAGED_LIMIT", 0.01)
    with pytest.raises(UserError, match="too many damaged frames"):
        calvin_remote.fetch(url, tmp_path / "strict", 12, log=lambda line: None, **QUICK)
    assert not (tmp_path / "strict" / "training").exists()


def test_the_disk_budget_ends_with_a_whole_store_or_before_anything_is_written(server, raw, tmp_path, monkeypatch):
    url = server.zip("/task_X.zip", raw)
    lines = []
    one = sum((raw / "training" / f"episode_{n:07d}.npz").stat().st_size for n in range(1000, 1006))
    stores = calvin_remote.fetch(url, tmp_path / "out", 12, disk_gb=10 * one / 1e9, commit=1, log=lines.append, **QUICK)
    assert 0 < len(stores["training"]) < 12 and any("the disk budget ends after" in line for line in lines)
    assert stores["training"].meta["partial"]["episodes"] == len(stores["training"])
    assert sum(map(len, contents(tmp_path / "out").values())) <= 10 * one
    lines.clear()
    calvin_remote.fetch(url, tmp_path / "out", 12, disk_gb=12, log=lines.append, **QUICK)
    (said,) = lines
    assert f"training has {len(stores['training'])} of 12 episodes: the disk budget ended it" in said and "remove it to fetch more" in said
    kept = tmp_path / "working" / "smoke" / "store"
    shutil.copytree(tmp_path / "out", kept)
    lines.clear()
    monkeypatch.setattr(freshness, "code", lambda *names: "of another version")
    fetched.episodes("smoke", kept.parent, SimpleNamespace(outputs=[]), None, url, 12, 12, lines.append)
    assert f"{kept / 'training'} has" in lines[1] and [line for line in lines if "another version" in line] == lines[2:] != []
    with pytest.raises(UserError, match=r"no room for one episode(.|\n)*disk_gb"):
        calvin_remote.fetch(url, tmp_path / "none", 12, disk_gb=one / 1e9, log=lambda line: None, **QUICK)
    assert not (tmp_path / "none" / "training").exists()


def test_a_zip_without_calvin_in_it_is_named(server, tmp_path):
    (tmp_path / "in" / "data").mkdir(parents=True)
    (tmp_path / "in" / "data" / "a.txt").write_text("a")
    with pytest.raises(UserError, match=r"holds no CALVIN data(.|\n)*task_D_D.zip"):
        calvin_remote.fetch(server.zip("/a.zip", tmp_path / "in" / "data"), tmp_path / "out", 3, log=lambda line: None, **QUICK)


def test_a_store_stands_in_for_a_raw_split_and_its_copy_can_be_written(server, raw, tmp_path):
    calvin_remote.fetch(server.zip("/task_X.zip", raw), tmp_path / "input", 3, log=lambda line: None, **QUICK)
    for path in (tmp_path / "input").rglob("*"):
        path.chmod(0o444 if path.is_file() else 0o555)
    source = calvin.Calvin(tmp_path / "input").split("training")
    assert len(source.annotations) == 3 and "3 of 12 episodes" in source.describe()
    store = ensure_store(tmp_path / "input", "training", tmp_path / "work" / "training", log=lambda line: None)
    assert digests(store) == digests(Store(tmp_path / "input" / "training"))
    (store.folder / "mine").write_text("kept")  # what the work added
    assert (store.folder / "meta" / "info.json").stat().st_mode & 0o200
    again = ensure_store(tmp_path / "input", "training", tmp_path / "work" / "training", log=lambda line: None)
    assert (again.folder / "mine").is_file()
    for path in (tmp_path / "input").rglob("*"):
        path.chmod(0o755)


def test_the_choice_takes_every_task_and_depends_on_the_seed_alone():
    notes = [calvin.Annotation(i, 10 * i, 10 * i + 5, f"task{i % 5 if i % 5 < 4 else 0}", "do", "D") for i in range(40)]
    picked = calvin_remote.choose(notes, 8, seed=1)
    assert picked == calvin_remote.choose(notes, 8, seed=1) == sorted(picked, key=lambda note: note.start)
    assert {f"task{i}" for i in range(4)} == {note.task_id for note in picked} and all(
        sum(note.task_id == f"task{i}" for note in picked) == 2 for i in range(4))  # fmt: skip
    assert picked != calvin_remote.choose(notes, 8, seed=2)
    assert len(calvin_remote.choose(notes, 100, seed=0)) == 40


def test_requests_have_a_limit(monkeypatch, server, raw):
    monkeypatch.setattr(remote_zip, "CHUNK", 30_000)
    url = server.zip("/task_X.zip", raw)
    archive = RemoteZip(url, **QUICK)
    before = len(server.asked)
    members = archive.find(lambda name: "/validation/episode_" in name)
    assert sum(isinstance(data, bytes) for _, data in archive.read(members)) == len(members) == 27
    assert len(server.asked) - before > 10 and max(end - start for start, end in server.asked[before:]) <= 30_000
