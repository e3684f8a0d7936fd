"""Built notebooks, the session's environment, inputs by content, the kaggle command. Run: pytest tests/test_kaggle.py"""

import ast
import builtins
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from packaging.requirements import Requirement

from repro import experiments, machine, profiles
from repro.kaggle import bundle, checks, environment, inputs, push, session, times
from repro.machine import UserError

ROOT = Path(__file__).resolve().parents[1]
BUILT = sorted(path.name for path in (ROOT / "kaggle").glob("repro-*"))


# ------------------------------------------------------------------------------------------------- what is committed


def test_what_is_committed_is_what_a_fresh_build_gives():
    assert bundle.problems(ROOT) == [], "run: repro kaggle build"


@pytest.mark.parametrize("name", BUILT)
def test_a_built_notebook_is_one_file_with_all_in_it(name):
    folder = ROOT / "kaggle" / name
    about = json.loads((folder / "kernel-metadata.json").read_text())
    path = folder / about["code_file"]
    assert sorted(file.name for file in folder.iterdir()) == sorted([path.name, "kernel-metadata.json"])
    assert path.stat().st_size < 1_000_000
    assert about["machine_shape"] == "NvidiaTeslaT4" and about["enable_internet"] is True and about["is_private"] is True
    assert {"dataset_sources", "model_sources", "kernel_sources"} <= about.keys()
    assert about["title"].replace(" ", "-") == about["id"].split("/")[1] and len(about["title"]) >= 5
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    assert sum("parameters" in one for one in tags) == 1 and tags.index(["parameters"]) == 1
    links = re.findall(r"\]\(#(\w+)\)", notebook.cells[0].source)
    anchors = re.findall(r'<a id="(\w+)">', "\n".join(cell.source for cell in notebook.cells))
    assert links == anchors and len(anchors) > 2
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_every_numbered_notebook_is_in_the_one_for_everything():
    notebook = nbformat.read(ROOT / "kaggle" / "repro-all" / "repro-all.ipynb", as_version=4)
    called = re.findall(r'^kit.section\("(\w+)"\)$', "\n".join(cell.source for cell in notebook.cells), re.MULTILINE)
    assert called == [path.stem for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))]


def test_the_table_of_profile_t4_says_what_the_records_and_the_profile_say():
    read = lambda name: json.loads((ROOT / "results" / "benchmarks" / f"{name}.json").read_text())
    text = (ROOT / "kaggle" / "README.md").read_text()
    rows = dict(line.split(" | ", 1) for line in text.split("## What profile")[1].splitlines() if line.startswith("| "))
    calvin, t4 = read("calvin_import"), profiles.get("t4")
    assert f"{calvin['import_frames_per_s']:.0f} a second" in rows["| import, attached"]
    assert f"{calvin['kB_per_frame']:.0f} kB" in rows["| import, attached"]
    assert f"{read('libero_import')['import_frames_per_s']:.0f} frames a second" in rows["| import, attached"]
    assert f"{read('levir_import')['import_pairs_per_s']:.0f} pairs a second" in rows["| import, attached"]
    row, case = rows["| training, ReconVLA"], read("memory")["cases"]["t4"]
    assert f"{len(experiments.VARIANTS)} runs of {t4.train_steps:,} steps" in row and f"micro-batch of {case['micro_batch']}" in row
    assert f"{case['with context and slack']:.1f} GiB" in row and case["how"] == "computed"
    row, case = rows["| training, VGGT-VLA"], read("vggt_memory")["cases"][t4.vla_preset]
    assert f"{t4.vla_steps:,} steps" in row and f"{case['with context and slack']:.1f} GiB at a batch of {case['batch']}" in row
    row, case = rows["| training, change agent"], read("change_memory")["cases"]["t4"]
    assert f"{t4.agent_steps:,} steps" in row and f"{case['GB with context and slack']:.1f} GB at a batch of {case['batch']}" in row
    assert f"{t4.evaluate_chains} chains" in rows["| evaluation"] and f"{t4.evaluate_single} of each single" in rows["| evaluation"]
    assert f"{t4.attention_frames} frames" in rows["| attention"]
    assert all("not measured" in row for head, row in rows.items() if head not in ("| stage",))


# ----------------------------------------------------------------------------------------------- building, on a small tree

NOTEBOOK = """# %% [markdown]
# # {number} · {title}

# %% tags=["parameters"]
profile = "smoke"  # size
{parameters}

# %%
print("{title}", profile)
"""


@pytest.fixture
def tree(tmp_path):
    """A repository with notebooks 00 and 01 and a library of one file."""
    for folder in ("notebooks", "src/repro", "papers/x"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "src/repro/one.py").write_text("x = 'é'\n")
    (tmp_path / "papers/x/claims.toml").write_text("a = 1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\ndependencies = []\n")
    (tmp_path / "notebooks/00_environment.py").write_text(NOTEBOOK.format(number="00", title="Environment", parameters=""))
    source = NOTEBOOK.format(number="01", title="Data", parameters='calvin_root = ""  # where\nseed = 0\nrate: float = 1')
    (tmp_path / "notebooks/01_data.py").write_text(source)
    return tmp_path


def test_a_build_is_byte_stable_and_what_is_stale_is_named(tree):
    bundle.write(tree, echo=lambda line: None)
    made = {path: path.read_bytes() for path in tree.glob("kaggle/*/*")}
    assert {path.parent.name for path in made} == {"repro-reconvla", "repro-all"} and bundle.problems(tree) == []
    shutil.rmtree(tree / "kaggle")
    bundle._wrapped.cache_clear()
    bundle.write(tree, echo=lambda line: None)
    assert {path: path.read_bytes() for path in tree.glob("kaggle/*/*")} == made
    (tree / "src/repro/one.py").write_text("x = 2\n")
    assert bundle.problems(tree) == [f"{name}: its library is stale: src/repro/one.py" for name in ("repro-reconvla", "repro-all")]
    (tree / "src/repro/one.py").write_text("x = 'é'\n")
    with open(tree / "notebooks/01_data.py", "a") as file:
        file.write("\n# %%\nprint(2)\n")
    assert bundle.problems(tree) == ["repro-reconvla: its cells are stale", "repro-all: its cells are stale"]
    (tree / "notebooks/01_data.py").unlink()
    assert bundle.problems(tree) == ["repro-reconvla: built, but its notebooks are gone", "repro-all: built, but its notebooks are gone"]


def test_the_command_builds_and_says_what_is_stale(tree, monkeypatch):
    from click.testing import CliRunner

    from repro.kaggle import commands

    monkeypatch.setenv("REPRO_ROOT", str(tree))
    stale = CliRunner().invoke(commands.kaggle, ["build", "--check"])
    assert isinstance(stale.exception, UserError) and "repro-all: not built" in str(stale.exception)
    assert "written: 2 sections" in CliRunner().invoke(commands.kaggle, ["build"]).output
    assert CliRunner().invoke(commands.kaggle, ["build", "--check"]).exit_code == 0
    assert "fetch" in CliRunner().invoke(commands.store, ["--help"]).output


def test_another_compressor_does_not_make_a_build_stale(tree, monkeypatch):
    bundle.write(tree, echo=lambda line: None)
    before = (tree / "kaggle/repro-all/repro-all.ipynb").read_bytes()
    compress = bundle.lzma.compress
    monkeypatch.setattr(bundle.lzma, "compress", lambda data, preset: compress(data, preset=0, check=bundle.lzma.CHECK_NONE))
    bundle._wrapped.cache_clear()
    assert bundle.problems(tree) == []
    bundle.write(tree, echo=lambda line: None)
    assert (tree / "kaggle/repro-all/repro-all.ipynb").read_bytes() == before
    bundle._wrapped.cache_clear()


def test_cells_about_one_system_go_into_its_notebook_alone(tree):
    with open(tree / "notebooks/00_environment.py", "a") as file:
        file.write('\n# %% [markdown] tags=["vggt-vla"]\n# ## Only VGGT-VLA\n')
        file.write('\n# %% tags=["reconvla", "nbval-check-output"]\nprint("only ReconVLA")\n')
    (tree / "notebooks/06_train.py").write_text((tree / "notebooks/00_environment.py").read_text().replace("# 00 ·", "# 06 ·"))
    names = ("repro-reconvla", "repro-vggt-vla", "repro-all")
    told = {name: "\n".join(cell.source for cell in bundle.build(tree, name).cells) for name in names}
    held = {name: (text.count("Only VGGT-VLA"), text.count('print("only ReconVLA")')) for name, text in told.items()}
    assert held == {"repro-reconvla": (0, 1), "repro-vggt-vla": (2, 0), "repro-all": (2, 2)}


def test_the_system_of_each_cell_can_run_without_the_others():
    """No name that a bundle's cells read is set only in cells that the bundle leaves out."""
    for name in bundle.SYSTEMS:
        known = set(dir(builtins)) | {"display"}
        for cell in bundle.build(ROOT, name).cells:
            if cell.cell_type != "code" or "library" in cell.metadata.get("tags", []):
                continue
            nodes = list(ast.walk(ast.parse(cell.source)))
            bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
            imports = [one for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for one in node.names]
            bound |= {(one.asname or one.name).split(".")[0] for one in imports} | {node.arg for node in nodes if isinstance(node, ast.arg)}
            bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
            read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
            known |= bound
            assert read <= known, f"{name}: {cell.source.splitlines()[0]}: {read - known}"


def test_the_one_parameters_cell(tree):
    cell = bundle.build(tree, "repro-reconvla").cells[1]
    values = {}
    exec(cell.source, values)
    assert cell.source.startswith('profile = "smoke"') and "session_hours: float = 11.0  # stop in good time" in cell.source
    begin = bundle.build(tree, "repro-reconvla").cells[4].source
    assert "session_hours, gpus_per_run, dict(calvin_root=calvin_root, seed=seed, rate=rate, calvin_episodes=" in begin
    wanted = {
        "session_hours": 11.0,
        "gpus_per_run": 1,
        "profile": "smoke",
        "calvin_root": "",
        "seed": 0,
        "rate": 1.0,
        "calvin_episodes": 0,
        "calvin_url": bundle.CALVIN_URL,
        "disk_gb": 12.0,
    }
    assert {name: values[name] for name in wanted} == wanted and 'calvin_root = ""  # where' in cell.source
    other = NOTEBOOK.format(number="04", title="Gaze", parameters="seed = 1")
    (tree / "notebooks/04_gaze.py").write_text(other)
    with pytest.raises(UserError, match=r"parameter 'seed' of 04_gaze.py(.|\n)*int 0(.|\n)*int 1"):
        bundle.build(tree, "repro-reconvla")
    (tree / "notebooks/04_gaze.py").write_text(other.replace("seed = 1", "").replace("print(", "for seed in range(2):\n    print("))
    bundle.build(tree, "repro-reconvla")  # who reads `seed` has run before
    first = (tree / "notebooks/00_environment.py").read_text()
    (tree / "notebooks/00_environment.py").write_text(first.replace("print(", "for seed in range(2):\n    print("))
    with pytest.raises(UserError, match="00_environment.py assigns to a later notebook's parameter seed"):
        bundle.build(tree, "repro-reconvla")


def run_library(cell: str, home: Path, then: str = "import repro.one; print(repro.one.__file__, repro.one.x)"):
    """The library cell in an interpreter that knows nothing of this repository."""
    environ = {"TMPDIR": str(home), "PATH": os.environ["PATH"]}
    return subprocess.run([sys.executable, "-I", "-S", "-c", f"{cell}\n{then}"], capture_output=True, text=True, env=environ, cwd=home)


def test_the_library_cell_unpacks_says_which_one_it_is_and_refuses_a_damaged_one(tree, tmp_path):
    (home := tmp_path / "home").mkdir()
    cell = next(cell for cell in bundle.build(tree, "repro-all").cells if "library" in cell.metadata.get("tags", ()))
    clean = cell.source.replace("tempfile.gettempdir()", repr(str(home)))  # -I leaves TMPDIR unread in some Pythons
    hashed = bundle.digest(bundle.pack(tree))
    done = run_library(clean, home)
    assert done.stdout.splitlines()[0] == f"repro 0.1.0, library {hashed}", done.stderr
    assert f"{home}/repro-{hashed}/src/repro/one.py é" in done.stdout
    assert (home / f"repro-{hashed}" / "papers/x/claims.toml").read_text() == "a = 1\n"
    packed = re.search(r'PAYLOAD = """\n(.*?)\n"""', clean, re.DOTALL)[1]
    other = bundle._wrapped.__wrapped__(bundle.pack(tree).replace("a = 1", "a = 2"))
    assert "damaged on the way" in run_library(clean.replace(packed, other), home).stderr


def test_times_are_those_of_a_finished_run(tree, tmp_path):
    work = tmp_path / "smoke"
    work.mkdir()
    with pytest.raises(UserError, match="no work folder of a finished run"):
        times.keep_times(tree, work)
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        times.keep_times(tree, tmp_path / "nowhere")
    (work / "notebooks").mkdir()
    (work / "notebooks" / "durations.json").write_text("{}")
    with pytest.raises(UserError, match=r"FileNotFoundError: (.|\n)*runs"):  # a run without records
        times.keep_times(tree, work)
    (work / "sections.json").write_text(json.dumps({"profile": "smoke", "hardware": "2 x T4", "seconds": {"01_data": 125.2}}))
    times.keep_times(tree, work)
    later = {"seconds": {"00_environment": 6, "01_data": 1}, "state": {"00_environment": "finished", "01_data": "cut"}}
    (work / "sections.json").write_text(json.dumps({"profile": "smoke", "hardware": "2 x T4", **later}))
    times.keep_times(tree, work)
    front = bundle.build(tree, "repro-reconvla").cells[0].source
    assert "profile smoke, measured on 2 x T4" in front
    assert "| [01 · Data](#s01) | 2 min 05 s |" in front and "| [00 · Environment](#s00) | 6 s |" in front
    assert json.loads(json.loads(bundle.pack(tree))["kaggle/times.json"])["smoke"]["seconds"]["01_data"] == 125.2


# ------------------------------------------------------------------------------------------------------------- inputs


LAYOUTS = ("{slug}", "datasets/somebody/{slug}", "models/somebody/{slug}/pyTorch/default/1")


def make_inputs(top: Path, layout: str) -> dict[str, Path]:
    """One of each kind below `top`, under names that say nothing."""

    def at(slug: str, inside: str = "") -> Path:
        folder = top / layout.format(slug=slug) / inside
        folder.mkdir(parents=True)
        return folder

    calvin, hdf5, lerobot, levir, model, wheels = (at(f"thing-{i}", "a/b" if i % 2 else "") for i in range(6))
    for split in inputs.SPLITS:
        (calvin / split).mkdir()
        (calvin / split / inputs.INDEX).touch()
    (hdf5 / "pick_up_demo.hdf5").touch()
    (lerobot / "meta").mkdir()
    features = {
        "observation.images.image": {},
        "observation.images.image2": {},
        "observation.state": {"shape": [8]},
        "action": {"shape": [7]},
    }
    (lerobot / "meta" / "info.json").write_text(json.dumps({"features": features}))
    (levir / "LevirCCcaptions.json").write_text("{}")
    (model / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"]}))
    (model / "model.safetensors").touch()
    (wheels / "x-1-py3-none-any.whl").touch()
    return {"calvin": calvin, "hdf5": hdf5, "lerobot": lerobot, "levir": levir, "model": model, "wheels": wheels}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_are_found_by_content_in_each_mount_layout(tmp_path, layout):
    made = make_inputs(tmp_path, layout)
    found = inputs.find(tmp_path)
    assert found.calvin_root() == made["calvin"] and found.levir_root() == made["levir"] and found.wheels == [made["wheels"]]
    assert found.libero == sorted([made["hdf5"], made["lerobot"]])
    assert found.models == {made["model"]: "Qwen2ForCausalLM"} and not found.weightless
    text = "\n".join(found.describe())
    assert all(str(path) in text for path in made.values())
    with pytest.raises(UserError, match=r"several LIBERO folders are attached(.|\n)*`libero_root`"):
        found.libero_root()


def test_a_folder_of_frames_is_never_listed(tmp_path, monkeypatch):
    made = make_inputs(tmp_path, LAYOUTS[1])
    listed, scandir = [], os.scandir
    monkeypatch.setattr(inputs.os, "scandir", lambda folder: listed.append(Path(folder)) or scandir(folder))
    inputs.find(tmp_path)
    assert listed and not [folder for folder in listed if folder == made["calvin"] or made["calvin"] in folder.parents]


def test_half_a_data_set_two_of_one_nothing_and_a_model_without_weights(tmp_path):
    made = make_inputs(tmp_path, LAYOUTS[0])
    (made["model"] / "model.safetensors").unlink()
    assert "NO WEIGHTS" in "\n".join(inputs.find(tmp_path).describe())
    shutil.rmtree(made["calvin"] / "validation")
    with pytest.raises(UserError, match=r"half of a CALVIN data set(.|\n)*no validation(.|\n)*Add Input"):
        inputs.find(tmp_path).calvin_root()
    (tmp_path / "other" / "training").mkdir(parents=True)
    (tmp_path / "other" / "training" / inputs.INDEX).touch()
    with pytest.raises(UserError, match=r"several CALVIN folders(.|\n)*`calvin_root`"):
        inputs.find(tmp_path).calvin_root()
    (empty := tmp_path / "empty" / "my-photos").mkdir(parents=True)
    nothing = inputs.find(empty.parent)
    assert nothing.calvin_root() is None and "my-photos" in nothing.describe()[0]
    assert inputs.find(tmp_path / "absent").describe()


def test_a_store_comes_before_raw_frames(tmp_path):
    make_inputs(tmp_path, LAYOUTS[0])
    for split in inputs.SPLITS:
        (tmp_path / "mine" / split / "meta").mkdir(parents=True)
        (tmp_path / "mine" / split / "meta" / "repro.json").write_text(json.dumps({"source": "CALVIN layout"}))
    assert inputs.find(tmp_path).calvin_root() == tmp_path / "mine"
    (tmp_path / "mine" / "validation" / "meta" / "repro.json").unlink()
    with pytest.raises(UserError, match=r"half of a CALVIN data set(.|\n)*no validation"):
        inputs.find(tmp_path).calvin_root()


# -------------------------------------------------------------------------------------------------------- the session


def test_a_session_begins_finds_nothing_says_so_and_packs_its_results(kaggle, capsys):
    kit = session.begin("smoke", "00_environment 01_calvin_data")
    assert kit.calvin("") == "" and kit.calvin("/mine") == "/mine"
    said = capsys.readouterr().out
    assert "nothing was installed" in said and "No CALVIN here: the embedded play table stands in" in said and "internet: off" in said
    assert machine.work("smoke") == kit.work == kaggle / "working" / "smoke" and os.environ["HF_HUB_OFFLINE"] == "1"
    kit.section("00_environment")
    kit.section("01_calvin_data")
    assert "section 2 of 2: 01_calvin_data" in capsys.readouterr().out
    for name in ("figures/a.png", "report.md", "store/training/meta/info.json", "calvin/training/e.npz", "aerial.part/a.png",
                 "train/model.safetensors"):  # fmt: skip
        (kit.work / name).parent.mkdir(parents=True, exist_ok=True)
        (kit.work / name).write_text("x")
    kit.finish()
    with zipfile.ZipFile(kaggle / "working" / "results.zip") as packed:
        assert sorted(packed.namelist()) == ["smoke/figures/a.png", "smoke/report.md", "smoke/sections.json"]
        record = json.loads(packed.read("smoke/sections.json"))
    assert list(record["seconds"]) == ["00_environment", "01_calvin_data"] and all(value >= 0 for value in record["seconds"].values())
    assert sorted(path.name for path in kit.work.iterdir() if path.is_dir()) == ["figures", "store", "train"]
    assert capsys.readouterr().out.count("removed 1 raw file") == 2


def test_what_is_attached_is_used_and_few_segments_are_called_few(kaggle, capsys):
    import calvin_folder

    for split in inputs.SPLITS:
        calvin_folder.make(kaggle / "input" / "datasets" / "a" / "b", split)
    kit = session.begin("smoke", "01_calvin_data")
    assert kit.calvin("") == str(kaggle / "input" / "datasets" / "a" / "b")
    assert "3 annotated segments are enough to see the pipeline, not to train" in capsys.readouterr().out


@pytest.mark.parametrize(("profile", "found", "message"), [
    ("t4", [], r"needs GPUs(.|\n)*GPU T4 x2"),
    ("smoke", [("Tesla P100-PCIE-16GB", (6, 0))], r"P100-PCIE-16GB is older(.|\n)*GPU T4 x2"),
    ("t4", [("Tesla T4", (7, 5))], None),
    ("t4", [("Tesla T4", (7, 5))] * 2, None),
    ("cpu", [], None),
])  # fmt: skip
def test_wrong_accelerators_stop_before_hours_are_spent(profile, found, message, capsys):
    if message:
        with pytest.raises(UserError, match=message):
            session.check_gpus(profile, found)
    else:
        session.check_gpus(profile, found)
        assert ("about twice the time" in capsys.readouterr().out) == (len(found) == 1)


def test_records_of_a_built_notebook_name_its_library(monkeypatch):
    from repro.run_records import provenance

    monkeypatch.setenv("REPRO_BUNDLE", "0123456789abcdef")
    assert provenance()["commit"] == "library 0123456789abcdef"


def test_gpus_are_asked_of_nvidia_smi(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho '0, GPU-a, Tesla T4, 7.5, 15360'\necho '1, GPU-b, Tesla T4, 7.5, 15360'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert session.gpus() == [("Tesla T4", (7, 5))] * 2


def test_a_full_disk_a_wrong_model_and_an_unknown_profile(kaggle, monkeypatch):
    with pytest.raises(UserError, match="no profile 'smokey'"):
        session.begin("smokey", "")
    (kaggle / "input" / "m").mkdir()
    (kaggle / "input" / "m" / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(UserError, match=r"input/m is no whole model(.|\n)*Add Input"):
        session.begin("smoke", "")
    usage = shutil.disk_usage(kaggle)
    monkeypatch.setattr(session.shutil, "disk_usage", lambda path: usage._replace(free=10**8))
    with pytest.raises(UserError, match=r"working is full(.|\n)*0.5 GB free(.|\n)*0.1 GB"):
        session.begin("smoke", "")


@pytest.mark.parametrize(("answers", "online"), [([True], True), ([False, True], True), ([False, False], False)])
def test_the_hub_is_asked_twice_and_again_when_internet_is_back(monkeypatch, answers, online):
    import huggingface_hub.constants as constants

    asked = iter(answers)

    def connect(*rest):
        if not next(asked):
            raise OSError("down")
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(checks.socket, "create_connection", connect)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    checks.use_hub(False)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    checks.use_hub(checks.internet())
    assert ("HF_HUB_OFFLINE" in os.environ) == constants.HF_HUB_OFFLINE == (not online) and not list(asked)


def test_the_token_goes_into_the_environment_and_nowhere_else(kaggle, monkeypatch, capsys):
    import types

    module = types.ModuleType("kaggle_secrets")
    module.UserSecretsClient = lambda: types.SimpleNamespace(get_secret=lambda name: "hf_very_secret")
    monkeypatch.setitem(sys.modules, "kaggle_secrets", module)
    monkeypatch.setenv("HF_TOKEN", "")
    session.begin("smoke", "").finish()
    assert os.environ["HF_TOKEN"] == "hf_very_secret"
    said = capsys.readouterr()
    assert "HF_TOKEN: from Kaggle's secrets" in said.out and "very_secret" not in said.out + said.err
    assert not any(b"very_secret" in path.read_bytes() for path in (kaggle / "working").rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------------------- the environment


def test_what_a_profile_needs():
    names = {profile: {one.name for one in environment.needs(ROOT / "pyproject.toml", profile)} for profile in ("smoke", "t4")}
    assert {"torch", "numpy", "jaxtyping", "pyarrow"} <= names["smoke"] and not names["smoke"] & {
        *environment.HEADLESS,
        *environment.PRETRAINED,
    }
    assert names["t4"] - names["smoke"] == set(environment.PRETRAINED)
    assert environment.missing([Requirement("opencv-python-headless"), Requirement("PyYAML"), Requirement("not-there")]) == [
        Requirement("not-there")
    ]


class Pip:
    """In the place of subprocess.run: keeps the command and the constraints, then does what it is told."""

    def __init__(self, code=0, stderr="", then=lambda: None):
        self.code, self.stderr, self.then, self.calls = code, stderr, then, []

    def __call__(self, command, **options):
        constraints = Path(command[command.index("--constraint") + 1]).read_text()
        self.calls.append((command, constraints))
        self.then()
        return subprocess.CompletedProcess(command, self.code, "", self.stderr)


@pytest.fixture
def project(tmp_path):
    """A pyproject.toml that asks for numpy and for a package which is not here."""
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["numpy>=1.26,<3", "reprotestpackage>=1"]\n')
    return tmp_path / "pyproject.toml"


def test_only_what_is_missing_is_installed_and_everything_else_is_pinned(project, tmp_path, monkeypatch, capsys):
    def add():
        (tmp_path / "site" / "reprotestpackage").mkdir(parents=True)
        (tmp_path / "site" / "reprotestpackage-1.2.dist-info").mkdir()
        (tmp_path / "site" / "reprotestpackage-1.2.dist-info" / "METADATA").write_text("Name: reprotestpackage\nVersion: 1.2\n")

    monkeypatch.syspath_prepend(tmp_path / "site")
    pip = Pip(then=add)
    monkeypatch.setattr(environment.subprocess, "run", pip)
    assert environment.ensure(project, "smoke", [tmp_path / "wheels"], online=False) == {"reprotestpackage": "1.2"}
    ((command, constraints),) = pip.calls
    assert command[-1] == "reprotestpackage>=1" and "--no-index" in command and str(tmp_path / "wheels") in command
    assert f"numpy=={metadata.version('numpy')}\n" in constraints and f"torch=={metadata.version('torch')}\n" in constraints
    assert "installed reprotestpackage 1.2 from" in capsys.readouterr().out
    assert environment.ensure(project, "smoke") == {} and len(pip.calls) == 1
    shutil.rmtree(tmp_path / "site")  # wheels of another package are attached, and internet is on
    assert environment.ensure(project, "smoke", [tmp_path / "wheels"], online=True) == {"reprotestpackage": "1.2"}
    assert "--no-index" not in pip.calls[1][0] and str(tmp_path / "wheels") in pip.calls[1][0]
    assert f"from {tmp_path / 'wheels'} and the package index" in capsys.readouterr().out


def test_an_installation_that_fails_or_does_nothing_is_an_error_with_the_next_click(project, monkeypatch):
    monkeypatch.setattr(
        environment.subprocess, "run", Pip(1, "WARNING: x\nERROR: No matching distribution found for reprotestpackage>=1\n")
    )
    with pytest.raises(UserError, match=r"No matching distribution(.|\n)*turn on Internet(.|\n)*repro kaggle wheels"):
        environment.ensure(project, "smoke", [project.parent], online=False)
    with pytest.raises(UserError, match=r"No matching distribution(.|\n)*next step: Run All again(.|\n)*repro kaggle wheels"):
        environment.ensure(project, "smoke")
    silent = Pip()
    monkeypatch.setattr(environment.subprocess, "run", silent)
    with pytest.raises(UserError, match=r"reprotestpackage>=1 must be installed(.|\n)*turn on Internet"):
        environment.ensure(project, "smoke", online=False)
    assert not silent.calls
    with pytest.raises(UserError, match="missing reprotestpackage"):
        environment.ensure(project, "smoke")


def test_numpy_of_another_version_is_never_replaced(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["numpy<1"]\n')
    pip = Pip()
    monkeypatch.setattr(environment.subprocess, "run", pip)
    with pytest.raises(UserError, match=r"numpy<1 wanted(.|\n)*Environment"):
        environment.ensure(tmp_path / "pyproject.toml", "smoke")
    assert not pip.calls


def wheel(folder: Path, name: str, asks: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(f"{name}-1.dist-info/METADATA", f"Name: {name}\nVersion: 1\n" + (f"Requires-Dist: {asks}\n" if asks else ""))
    return path


def test_wheels_that_would_not_install_are_refused(tmp_path, monkeypatch):
    image = {"huggingface-hub": Requirement("huggingface-hub==1.11.0")}
    assert environment.unmet(wheel(tmp_path, "a", "huggingface-hub>=1.0"), {"a"}, image) == []
    assert environment.unmet(wheel(tmp_path, "a", "huggingface-hub>=2.0"), {"a"}, image)
    assert environment.unmet(wheel(tmp_path, "a", "nobody-has-this"), {"a"}, image) == ["a-1-py3-none-any.whl asks for nobody-has-this"]
    assert environment.unmet(wheel(tmp_path, "a", "nobody_has_this"), {"a", "nobody-has-this"}, image) == []
    assert environment.unmet(wheel(tmp_path, "a", 'nobody-has-this; extra == "dev"'), {"a"}, image) == []

    def download(command, **options):
        wheel(Path(command[command.index("--dest") + 1]), "jaxtyping", "wadler-lindig")
        assert "--no-deps" in command and "jaxtyping==0.3.11" in command
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(environment.subprocess, "run", download)
    with pytest.raises(UserError, match="jaxtyping-1-py3-none-any.whl asks for wadler-lindig"):
        environment.download_wheels(tmp_path / "out", ROOT)
    wheel(tmp_path / "out", "wadler_lindig")
    assert len(environment.download_wheels(tmp_path / "out", ROOT, echo=lambda line: None)) == 2
    assert json.loads((tmp_path / "out" / "dataset-metadata.json").read_text())["id"] == "OWNER/repro-wheels"


# -------------------------------------------------------------------------------------------------- the kaggle command


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`kaggle` as a script that keeps what it was called with and answers by the lines of `answers` ("words: code text")."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "kaggle"
    script.write_text(f"""#!{sys.executable}
import pathlib, shutil, sys
here = pathlib.Path({str(tmp_path)!r})
number = len(list(here.glob("call-*")))
(here / f"call-{{number}}").write_text(" ".join(sys.argv[1:]))
if "-p" in sys.argv and "output" not in sys.argv:
    shutil.copytree(sys.argv[sys.argv.index("-p") + 1], here / f"sent-{{number}}")
answers = (here / "answers").read_text().splitlines()
for i, line in enumerate(answers):
    words, _, rest = line.partition(": ")
    if " ".join(sys.argv[1:]).startswith(words):
        code, _, text = rest.partition(" ")
        (here / "answers").write_text("\\n".join(answers[:i] + answers[i + 1:]))
        print(text)
        sys.exit(int(code))
""")
    script.chmod(0o755)
    (tmp_path / "answers").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("KAGGLE_USERNAME", "ada")
    return tmp_path


def calls(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("call-*"))]


def test_a_push_names_the_account_and_its_sources_and_leaves_the_committed_file_alone(command):
    committed = (ROOT / "kaggle" / "repro-all" / "kernel-metadata.json").read_bytes()
    assert push.push(ROOT, "all", None, ["ada/calvin"], ["q/qwen/t/0.5b/1"], internet=False, echo=lambda line: None) == "ada/repro-all"
    about = json.loads((command / "sent-0" / "kernel-metadata.json").read_text())
    assert about["id"] == "ada/repro-all" and about["dataset_sources"] == ["ada/calvin"] and about["enable_internet"] is False
    assert about["model_sources"] == ["q/qwen/t/0.5b/1"] and "--accelerator NvidiaTeslaT4" in calls(command)[0]
    assert (command / "sent-0" / "repro-all.ipynb").read_bytes() == (ROOT / "kaggle/repro-all/repro-all.ipynb").read_bytes()
    assert (ROOT / "kaggle" / "repro-all" / "kernel-metadata.json").read_bytes() == committed
    push.status(ROOT, "repro-all", "bob")
    push.pull(ROOT, "all", None, command / "out")
    assert calls(command)[1:] == ["kernels status bob/repro-all", f"kernels output ada/repro-all -p {command / 'out'}"]
    with pytest.raises(UserError, match=r"no built notebook 'repro-everything'(.|\n)*repro-all"):
        push.push(ROOT, "everything", None)


def test_throttling_is_waited_for_and_other_failures_are_told(command, monkeypatch):
    (command / "answers").write_text("kernels status: 1 429 Too Many Requests\nkernels status: 0 RUNNING")
    waited = []
    assert push.call(["kernels", "status", "x"], sleep=waited.append) == "RUNNING" and waited == [5]
    (command / "answers").write_text("kernels status: 1 404 Not Found")
    with pytest.raises(UserError, match="404 Not Found"):
        push.call(["kernels", "status", "x"], sleep=waited.append)
    (command / "answers").write_text("kernels push: 0 Kernel push error: Maximum batch GPU session count of 2 reached.")
    with pytest.raises(UserError, match="session count of 2 reached"):
        push.call(["kernels", "push"], sleep=waited.append)
    (command / "answers").write_text("kernels status: 1 401 Unauthorized")
    with pytest.raises(UserError, match="kaggle auth login"):
        push.call(["kernels", "status", "x"], sleep=waited.append)
    monkeypatch.delenv("KAGGLE_USERNAME")
    (command / "answers").write_text("config view: 0 - username: grace")
    assert push.owner(None) == "grace"
    with pytest.raises(UserError, match="account is not known"):
        push.owner(None)
    monkeypatch.setenv("PATH", str(command))
    with pytest.raises(UserError, match=f"{re.escape(sys.executable)} -m pip install kaggle"):
        push.call(["config", "view"])
    with pytest.raises(UserError, match="no built notebook"):  # said before anything that needs the command
        push.pull(ROOT, "everything", None, command / "new")
    assert not (command / "new").exists()


def test_a_store_becomes_a_data_set_and_then_a_new_version_of_it(command, tmp_path):
    import calvin_folder

    from repro.data.calvin_import import import_calvin

    for split in inputs.SPLITS:
        calvin_folder.make(tmp_path / "raw", split)
        import_calvin(tmp_path / "raw", split, tmp_path / "stores" / split, workers=1)
    (command / "answers").write_text(
        "datasets status: 1 404 Not Found\ndatasets create: 0 made\ndatasets status: 0 pending\ndatasets status: 0 ready"
    )
    waited = []
    assert push.push_store(tmp_path / "stores", "my-calvin", None, sleep=waited.append, echo=lambda line: None) == "ada/my-calvin"
    assert waited == [10, 10] and "datasets create" in calls(command)[1] and "--dir-mode zip" in calls(command)[1]
    sent = command / "sent-1"
    assert json.loads((sent / "dataset-metadata.json").read_text())["id"] == "ada/my-calvin"
    assert inputs.find(sent).calvin_root() == sent  # what the next session attaches is found
    (command / "answers").write_text("datasets status: 0 ready\ndatasets version: 0 made\ndatasets status: 0 ready")
    push.push_store(tmp_path / "stores" / "training", "my-calvin", None, message="more", sleep=waited.append, echo=lambda line: None)
    assert "datasets version" in calls(command)[5] and "-m more" in calls(command)[5]
    (command / "answers").write_text("datasets status: 0 ready\ndatasets version: 0 made\ndatasets status: 0 failed")
    with pytest.raises(UserError, match="could not make ada/my-calvin"):
        push.push_store(tmp_path / "stores" / "training", "my-calvin", None, sleep=waited.append, echo=lambda line: None)
    with pytest.raises(UserError, match="holds no store"):
        push.push_store(tmp_path / "raw", "my-calvin", None)
    with pytest.raises(UserError, match="no name of a data set"):
        push.push_store(tmp_path / "stores", "My Calvin", None)
