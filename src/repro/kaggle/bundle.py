"""The uploaded notebooks: the numbered ones put together, one file a system, with the library inside.

    repro kaggle build                       # kaggle/<name>/<name>.ipynb and kernel-metadata.json
    bundle.problems(root)                    # what is not as a fresh build would be; [] where all is

A built notebook needs nothing beside itself: title, contents and times, ONE parameters cell, a cell that unpacks and imports the library
(compressed text, checked by its hash), the inputs, the sections, the results. Two builds of one tree give the same bytes on one machine;
another liblzma may compress otherwise, so `problems` compares what is packed and not how.
"""

import ast
import base64
import hashlib
import json
import lzma
import os
import re
from functools import lru_cache
from pathlib import Path

import repro
from repro import notebooks
from repro.kaggle.times import clock, read_times
from repro.machine import UserError
from repro.notebooks import Parameter

SYSTEMS = {  # folder and slug: title, numbers of its notebooks (those that exist are taken; () takes all)
    "repro-reconvla": ("ReconVLA on CALVIN", ("00", "01", "04", "05", "08", "09", "10")),
    "repro-vggt-vla": ("VGGT-VLA on LIBERO", ("00", "02", "06", "08", "09", "10")),
    "repro-change-agent": ("A change agent on LEVIR-CC", ("00", "03", "07")),
    "repro-all": ("Three vision-language-action systems", ()),
}
ALONE = {name.removeprefix("repro-") for name in SYSTEMS} - {"all"}  # tags of cells that are about one system only
PACKED = ("src/repro/**/*.py", "papers/*/*.toml", "pyproject.toml", "kaggle/times.json")
MARK = re.compile(r'PAYLOAD = """\n(.*?)\n"""', re.DOTALL)
SIZE_LIMIT = 1_000_000  # bytes of a built notebook
CALVIN_URL = "http://calvin.cs.uni-freiburg.de/dataset/task_D_D.zip"  # mees/calvin, dataset/download_data.sh
ROOTS = {"calvin_root": "calvin", "libero_root": "libero", "levir_root": "levir"}  # parameter -> how the session finds it
FETCHED = (  # parameters of the bundle itself, where there is a `calvin_root`
    Parameter("calvin_episodes", int, 0, "CALVIN's own data: annotated episodes to fetch out of calvin_url; 0: none"),
    Parameter("calvin_url", str, CALVIN_URL, "the zip they are in; only their frames are read"),
    Parameter("disk_gb", float, 12.0, "the most that fetched data may take; Kaggle keeps 20 GB"),
)
SESSION = (  # parameters of every bundle
    Parameter("session_hours", float, 11.0, "stop in good time, and go on in the next session; Kaggle's limit is 12; 0: no end"),
    Parameter("gpus_per_run", int, 1, "1: training runs side by side, one a GPU; 2: each run on both"),
)
UNCOUNTED = ("profile", "disk_gb", *(one.name for one in SESSION))  # a section is the same whatever these are


# ------------------------------------------------------------------------------------------------------- what goes in


def pack(root: Path) -> str:
    """The library and what it reads, as JSON text {path: text} sorted by path."""
    paths = sorted(path for pattern in PACKED for path in root.glob(pattern) if "__pycache__" not in path.parts)
    return json.dumps({path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}, indent=0)


def digest(text: str) -> str:
    """16 hex digits of a packed library's SHA-256: what a built notebook prints first, and what its records name."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sections(root: Path, name: str) -> list[Path]:
    """The numbered notebooks of a system; [] where there is none but those that every system shares (00)."""
    numbers = SYSTEMS[name][1]
    found = [path for path in notebooks.sources(root) if not numbers or path.stem[:2] in numbers]
    return found if {path.stem[:2] for path in found} - {"00"} else []


def belongs(cell, name: str) -> bool:
    """Whether a cell goes into a system's notebook: those tagged with another system's name do not."""
    tags = set(cell.metadata.tags) & ALONE
    return not tags or name == "repro-all" or name.removeprefix("repro-") in tags


def parameters(paths: list[Path]) -> list[Parameter]:
    """All parameters of some notebooks, `profile` first. UserError where two notebooks mean different things by one name."""
    merged: dict[str, Parameter] = {}
    for path in paths:
        for name, one in notebooks.inspect(path).items():
            known = merged.setdefault(name, one)
            if (known.type, known.default) != (one.type, one.default):
                raise UserError(f"parameter {name!r} of {path.name} has another default than in an earlier notebook",
                                f"{known.type.__name__} {known.default!r}", f"{one.type.__name__} {one.default!r}",
                                "one notebook on Kaggle has one parameters cell: rename it, or use the same default")  # fmt: skip
    extra = {one.name: one for one in FETCHED} if "calvin_root" in merged else {}
    session = {one.name: one for one in SESSION}
    return sorted({**merged, **extra, **session}.values(), key=lambda one: one.name != "profile")


def check_names(path: Path, names: set[str]) -> None:
    """UserError where a section assigns to one of `names`, parameters of later ones: in the same kernel they would read the new value."""
    for cell in notebooks.convert(path).cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.tags:
            set_here = {
                node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
            if set_here & names:
                raise UserError(f"{path.name} assigns to a later notebook's parameter {', '.join(sorted(set_here & names))}",
                                "parameters that others read are set in the parameters cell only", cell.source.splitlines()[0],
                                "use another name in that cell")  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- build


LIBRARY = '''# The library of this kit, compressed. Nothing is downloaded: the cell unpacks it, checks its hash and says which it is.
import base64, hashlib, json, lzma, os, sys, tempfile
from pathlib import Path

PAYLOAD = """
{payload}
"""
packed = lzma.decompress(base64.b64decode(PAYLOAD)).decode()
found = hashlib.sha256(packed.encode()).hexdigest()[:16]
if found != "{digest}":
    raise RuntimeError(f"this notebook was damaged on the way: library {{found}}, expected {digest}; upload the file again")
home = Path(tempfile.gettempdir()) / f"repro-{{found}}"
if not home.is_dir():
    part = Path(tempfile.mkdtemp(dir=home.parent))
    for name, text in json.loads(packed).items():
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_text(text, encoding="utf-8")
    os.replace(part, home)
sys.path.insert(0, str(home / "src"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home / "src"), os.environ.get("PYTHONPATH")]))
os.environ["REPRO_ROOT"], os.environ["REPRO_BUNDLE"] = str(home), found
print("repro {version}, library", found)'''

BEGIN = """from repro.kaggle import session

kit = session.begin(profile, "{sections}", session_hours, gpus_per_run, dict({given}))"""


def build(root: Path, name: str):
    """The notebook of a system, as nbformat has it. UserError where its parts do not fit together or it grows too large."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    paths = sections(root, name)
    asked = parameters(paths)
    times = read_times(root / "kaggle" / "times.json")
    text = pack(root)
    titles = {path: _title(path) for path in paths}
    declared = {path: notebooks.inspect(path) for path in paths}
    cells = [
        new_markdown_cell(_front(SYSTEMS[name][0], titles, times)),
        new_code_cell("\n".join(_line(one) for one in asked), metadata={"tags": ["parameters"]}),
        new_code_cell(LIBRARY.format(payload=_wrapped(text), digest=digest(text), version=repro.__version__),
                      metadata={"tags": ["library"], "_kg_hide-input": True, "jupyter": {"source_hidden": True}}),
        new_markdown_cell("## This machine and what is attached\nInstalls only what is missing, then looks through the inputs."),
        new_code_cell(BEGIN.format(sections=" ".join(path.stem for path in paths), given=", ".join(
            f"{one.name}={one.name}" for one in asked if one.name not in UNCOUNTED))),
    ]  # fmt: skip
    roots = [one.name for one in asked if one.name in ROOTS]
    cells += [new_code_cell("\n".join(_root(one) for one in roots))] if roots else []
    for i, path in enumerate(paths):
        check_names(path, {name for later in paths[i + 1 :] for name in declared[later]})
        source = [cell for cell in notebooks.convert(path).cells if belongs(cell, name)]
        first = f'<a id="s{path.stem[:2]}"></a>\n\n{source[0].source}'
        cells += [new_markdown_cell(first), new_code_cell(f'kit.section("{path.stem}")')]
        for cell in source[1:]:
            make = new_code_cell if cell.cell_type == "code" else new_markdown_cell
            cells += [] if "parameters" in cell.metadata.tags else [make(cell.source)]
    cells += [new_markdown_cell('<a id="results"></a>\n\n# Results\nWhat is finished and what is left, every table, every figure.\n'
                                'One file to download: `results.zip`, in the output.'),
              new_code_cell("kit.finish()")]  # fmt: skip
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i:03d}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    if (size := len(nbformat.writes(made).encode())) >= SIZE_LIMIT:
        raise UserError(f"{name} is too large to upload with ease", f"less than {SIZE_LIMIT:,} bytes", f"{size:,}", "pack less")
    return made


@lru_cache(maxsize=1)
def _wrapped(text: str, width: int = 1000) -> str:
    packed = base64.b64encode(lzma.compress(text.encode(), preset=9)).decode()
    return "\n".join(packed[i : i + width] for i in range(0, len(packed), width))


def _line(one: Parameter) -> str:
    kind, value = ": float" if one.type is float else "", json.dumps(one.default) if one.type is str else repr(one.default)
    return f"{one.name}{kind} = {value}" + (f"  # {one.help}" if one.help else "")


def _root(name: str) -> str:
    more = ", calvin_episodes, calvin_url, disk_gb" if name == "calvin_root" else ""
    return f"{name} = kit.{ROOTS[name]}({name}{more})"


def _title(path: Path) -> str:
    first = notebooks.convert(path).cells[0].source.splitlines()[0]
    if not first.startswith("# "):
        raise UserError(f"{path.name} does not begin with a title", "a first cell `# NN · Title`", first)
    return first[2:]


def _front(title: str, titles: dict[Path, str], times: dict) -> str:
    """Title, what to do, contents with measured times."""
    rows = [[f"[{text}](#s{path.stem[:2]})", *(clock(one["seconds"].get(path.stem)) for one in times.values())]
            for path, text in titles.items()]  # fmt: skip
    heads = ["section", *(f"profile {profile}, measured on {one['hardware']}" for profile, one in times.items())]
    table = ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]
    return "\n".join([
        f"# {title}", "",
        "*Run All* works as it is, with nothing attached and internet on. It then proves every step in minutes, with tiny models on",
        "embedded stand-ins for the data, and says so in each result. For more, set `profile` in the next cell: `cpu` learns to act,",
        "`t4` is for **two T4s** (*Session options*, *Accelerator*, *GPU T4 x2*) with data and weights attached or fetched.", "",
        "Attached inputs are found by their content, whatever they are called: CALVIN, LIBERO, LEVIR-CC, our own stores, model folders,",
        "wheels (what a session without internet needs). All results are in the output, as `results.zip` too. What a session has no time",
        "for is left to the next: attach this notebook's output to it (*Add Input*, *Your Work*) and *Run All*.", "",
        *table, "", "Then: [results](#results). A dash: not measured yet.",
    ])  # fmt: skip


def metadata(name: str) -> str:
    """kernel-metadata.json. `repro kaggle push` puts in the owner, and the sources: slugs belong to the account that attaches them."""
    about = {
        "id": f"OWNER/{name}", "title": name.replace("-", " "), "code_file": f"{name}.ipynb", "language": "python",
        "kernel_type": "notebook", "is_private": True, "enable_gpu": True, "enable_tpu": False, "enable_internet": True,
        "machine_shape": "NvidiaTeslaT4", "dataset_sources": [], "competition_sources": [], "kernel_sources": [], "model_sources": [],
    }  # fmt: skip
    return json.dumps(about, indent=1) + "\n"


def write(root: Path, echo=print) -> None:
    """Build every system that has notebooks into kaggle/; what is as it should be is not touched."""
    import nbformat

    built = {name: build(root, name) for name in SYSTEMS if sections(root, name)}  # all is checked before anything is written
    for name, made in built.items():
        folder = root / "kaggle" / name
        notebook, about = folder / f"{name}.ipynb", folder / "kernel-metadata.json"
        fresh = not _differs(notebook, made) and about.is_file() and about.read_text() == metadata(name)
        if not fresh:
            folder.mkdir(parents=True, exist_ok=True)
            _write(notebook, nbformat.writes(made) + "\n")
            _write(about, metadata(name))
        echo(f"{name:<20} {'unchanged' if fresh else 'written'}: {len(sections(root, name))} sections, {notebook.stat().st_size:,} bytes")


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def problems(root: Path) -> list[str]:
    """What of kaggle/ is not as a fresh build would be; [] where all is."""
    found = []
    for name in SYSTEMS:
        folder, wanted = root / "kaggle" / name, bool(sections(root, name))
        if wanted and (why := _differs(folder / f"{name}.ipynb", build(root, name))):
            found.append(f"{name}: {why}")
        about = folder / "kernel-metadata.json"
        if wanted and (not about.is_file() or about.read_text() != metadata(name)):
            found.append(f"{name}: its kernel-metadata.json")
        if not wanted and folder.exists():
            found.append(f"{name}: built, but its notebooks are gone")
    return found


def _differs(path: Path, made) -> str:
    """How the notebook at `path` differs from `made`; "" where it does not. The library counts by its content, not by its compression."""
    if not path.is_file():
        return "not built"
    old, new = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(made))
    old_text, new_text = _library(old), _library(new)
    if old_text != new_text:
        was, now = (json.loads(text) if text else {} for text in (old_text, new_text))
        changed = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
        return f"its library is stale: {', '.join(changed[:5])}"
    flat = lambda notebook: [(cell["id"], cell["cell_type"], "".join(cell["source"]), cell["metadata"]) for cell in notebook["cells"]]
    return "" if flat(old) == flat(new) and old["metadata"] == new["metadata"] else "its cells are stale"


def _library(notebook: dict) -> str:
    """Take the packed library out of a notebook (its cell then holds none) and return it as text; "" where there is none."""
    for cell in notebook["cells"]:
        if "library" in cell["metadata"].get("tags", ()):
            source = "".join(cell["source"])
            if match := MARK.search(source):
                cell["source"] = MARK.sub("", source)
                return lzma.decompress(base64.b64decode(match[1])).decode()
    return ""
