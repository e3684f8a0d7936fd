"""Run All, simulated: the uploaded file alone in a tree shaped like Kaggle's, in a fresh environment, without this repository or a network.

The environment is a venv whose site-packages links to what is installed here, but for what Kaggle's image lacks: that comes out of wheels
which are attached as an input. Run: pytest tests/test_kaggle_run_all.py
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from datetime import datetime
from importlib import metadata
from pathlib import Path

import calvin_folder
import nbformat
import pytest

from repro.kaggle import bundle

ROOT = Path(__file__).resolve().parents[1]
LACKING = ("jaxtyping", "wadler_lindig")  # on Kaggle's image, of what smoke needs
HIDDEN = re.compile(r"(jaxtyping|wadler_lindig|repro|__editable__|__pycache__)|.*\.pth$")
OFFLINE = """import socket

def refuse(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
        raise OSError(f"no network in this test: {address}")
    return connect(self, address)

connect, socket.socket.connect = socket.socket.connect, refuse
found = socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    if host not in (None, "", "127.0.0.1", "localhost", "::1"):
        raise socket.gaierror(f"no network in this test: {host}")
    return found(host, *rest, **more)
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of a fresh environment: what is installed here, without LACKING, without repro, without a network."""
    place = tmp_path_factory.mktemp("image")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    site = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not HIDDEN.match(entry.name):
            (site / entry.name).symlink_to(entry)
    (site / "sitecustomize.py").write_text(OFFLINE)
    return place / "bin" / "python"


def wheelhouse(folder: Path) -> None:
    """Wheels of LACKING, put together out of the installed files."""
    folder.mkdir(parents=True)
    for name in LACKING:
        one = metadata.distribution(name)
        files = [file for file in one.files if "__pycache__" not in file.parts and ".." not in file.parts and file.name != "RECORD"]
        info = next(file.parts[0] for file in files if file.parts[0].endswith(".dist-info"))
        with zipfile.ZipFile(folder / f"{name}-{one.version}-py3-none-any.whl", "w") as out:
            for file in files:
                out.write(one.locate_file(file), str(file))
            out.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in files))


def environ(root: Path, run_type: str) -> dict[str, str]:
    """What a session's processes see: nothing of this repository."""
    return {
        "PATH": "/usr/bin:/bin", "HOME": str(root / "home"), "TMPDIR": str(root / "tmp"), "KAGGLE_KERNEL_RUN_TYPE": run_type,
        "REPRO_KAGGLE_ROOT": str(root), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "MPLBACKEND": "agg", "LANG": "C.UTF-8",
    }  # fmt: skip


def kaggle_tree(root: Path) -> Path:
    for folder in ("input", "working", "tmp", "home"):
        (root / folder).mkdir(parents=True)
    return root


def run_all(path: Path, python: Path, root: Path, run_type: str, seconds: int):
    """Execute the notebook as Kaggle does: from top to bottom, in <root>/working."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class Image(AsyncKernelManager):
        @property
        def kernel_spec(self):
            argv = [str(python), "-m", "ipykernel_launcher", "--log-level=CRITICAL", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

        async def start_kernel(self, **options):
            await super().start_kernel(**{**options, "env": environ(root, run_type)})

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": str(root / "working")}}, kernel_manager_class=Image)
    client.execute()
    return notebook


def said(notebook) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))


def state(folder: Path) -> dict[str, tuple]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def check(notebook, root: Path, python: Path, digest: str) -> str:
    """What holds of every finished run; its text."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    text = said(notebook)
    first = next(output["text"] for cell in code for output in cell.outputs)
    assert first == f"repro 0.1.0, library {digest}\n"
    assert "internet: off" in text and re.search(r"packages: installed jaxtyping \S+, wadler_lindig \S+ from .*input/wheels", text)
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    assert all((site / name).is_symlink() for name in ("torch", "numpy", "transformers")) and not (site / "jaxtyping").is_symlink()
    with zipfile.ZipFile(root / "working" / "results.zip") as packed:
        names = packed.namelist()
        assert packed.testzip() is None and json.loads(packed.read("smoke/sections.json"))["library"] == digest
    assert any(name.startswith("smoke/figures/") for name in names)
    assert not any(str(ROOT) in text for text in (text, *os.listdir(root / "working")))
    return text


def test_the_uploaded_file_alone_runs_to_the_end(python, tmp_path, monkeypatch):
    """Environment and data, on a tiny CALVIN folder found by its content; first without the wheels, which stops with the next click."""
    monkeypatch.setitem(bundle.SYSTEMS, "repro-short", ("Short", ("00", "01")))
    made, root = bundle.build(ROOT, "repro-short"), kaggle_tree(tmp_path / "kaggle")
    nbformat.write(made, tmp_path / "uploaded.ipynb")
    for split in ("training", "validation"):
        calvin_folder.make(root / "input" / "datasets" / "somebody" / "robots-42" / "unpacked", split)
    cells = [cell.source for cell in made.cells if cell.cell_type == "code"]
    (tmp_path / "begin.py").write_text("\n".join(cells[:3]))
    begun = subprocess.run([str(python), str(tmp_path / "begin.py")], env=environ(root, "Interactive"), cwd=root / "working",
                           capture_output=True, text=True)  # fmt: skip
    assert begun.returncode and "jaxtyping>=0.3 must be installed" in begun.stderr and "turn on Internet" in begun.stderr
    wheelhouse(root / "input" / "wheels")
    made.cells[1].source = made.cells[1].source.replace("session_hours: float = 11.0", "session_hours: float = 0.0001")
    nbformat.write(made, tmp_path / "short.ipynb")  # no time for anything: ends well all the same, and is gone on from
    text = said(run_all(tmp_path / "short.ipynb", python, root, "Batch", seconds=500))
    assert "The session's time is over. What is done is on disk" in text
    assert "left: 00_environment, 01_calvin_data\nto go on: attach" in text
    place = root / "input" / "notebooks" / "somebody" / "repro-short"
    place.parent.mkdir(parents=True)
    (root / "working").rename(place)
    (root / "working").mkdir()
    subprocess.run([str(python), "-m", "pip", "uninstall", "-q", "-y", *LACKING], check=True, env=environ(root, "Batch"))
    before = state(root / "input")
    notebook = run_all(tmp_path / "uploaded.ipynb", python, root, "Batch", seconds=500)
    text = check(notebook, root, python, bundle.digest(bundle.pack(ROOT)))
    assert 0 < first_output(notebook) < 60
    assert f"goes on with {place}/smoke, session 1" in text and "all 2 sections are finished" in text
    assert "robots-42/unpacked, 3 annotated segments to train on" in text and "not to train" in text
    assert state(root / "input") == before
    assert sorted(path.name for path in (root / "working").iterdir()) == ["results.zip", "smoke"]
    assert (root / "working" / "smoke" / "store" / "training" / "meta" / "info.json").is_file()


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "kaggle").glob("repro-*")))
def test_each_built_notebook_runs_to_the_end_in_smoke(python, tmp_path, name):
    """One of them trains as on two GPUs, by torchrun in two processes. All sections of one within 8 minutes, the first result in one."""
    root, both = kaggle_tree(tmp_path / "kaggle"), name == "repro-reconvla"
    wheelhouse(root / "input" / "wheels")
    subprocess.run([str(python), "-m", "pip", "uninstall", "-q", "-y", *LACKING], check=False, env=environ(root, "Batch"))
    made = nbformat.read(ROOT / "kaggle" / name / f"{name}.ipynb", as_version=4)
    if both:
        assert "gpus_per_run = 1" in made.cells[1].source
        made.cells[1].source = made.cells[1].source.replace("gpus_per_run = 1", "gpus_per_run = 2")
    nbformat.write(made, tmp_path / "uploaded.ipynb")
    notebook = run_all(tmp_path / "uploaded.ipynb", python, root, "Batch", seconds=3600)
    text = check(notebook, root, python, bundle.digest(bundle.pack(ROOT)))
    assert "stands in for it" in text
    with zipfile.ZipFile(root / "working" / "results.zip") as packed:
        sections = json.loads(packed.read("smoke/sections.json"))["seconds"]
    assert list(sections) == [path.stem for path in bundle.sections(ROOT, name)]
    assert sum(sections.values()) < 480 and first_output(notebook) < 60
    summaries = [json.loads(path.read_text()) for path in (root / "working" / "smoke").rglob("summary.json")]
    assert summaries and {one["processes"] for one in summaries} == ({2} if both else {1})


def first_output(notebook) -> float:
    """Seconds from the end of the cell that installs to the end of the first one, of a section's own, that shows something."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    ended = lambda cell: datetime.fromisoformat(cell.metadata.execution["shell.execute_reply"].replace("Z", "+00:00"))
    begin = next(i for i, cell in enumerate(code) if "session.begin(" in cell.source)
    shows = next(cell for cell in code[begin + 1 :] if cell.outputs and "kit." not in cell.source)
    return (ended(shows) - ended(code[begin])).total_seconds()
