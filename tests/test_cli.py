"""The `repro` command. Run: pytest tests/test_cli.py"""

import json
import os
import subprocess
import sys
import time

import pytest

from repro import cli, doctor, machine


@pytest.fixture
def repro(monkeypatch, capsys, tmp_path):
    """`repro(*arguments) -> (exit code, stdout, stderr)` in an empty folder, in this process."""
    for name in ("REPRO_ROOT", "REPRO_WORK", "REPRO_CALVIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["repro", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


def test_help_is_quick_and_names_the_commands():
    """Nothing heavy is imported before a command needs it: well under a second even on a busy machine."""
    best = 9.0
    for _ in range(3):
        began = time.monotonic()
        answer = subprocess.run([sys.executable, "-m", "repro", "--help"], capture_output=True, text=True, check=True).stdout
        best = min(best, time.monotonic() - began)
    assert {"doctor", "run", "train", "evaluate", "table", "publish", "calvin"} <= set(answer.split())
    assert best < 1.0
    heavy = "import sys, repro.cli; print([m for m in ('torch', 'numpy', 'papermill', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_user_error_has_no_traceback_and_exit_code_2(repro, tmp_path):
    code, out, err = repro("run", "--profile", "smok")
    assert code == 2 and err.startswith("error: there is no profile 'smok'") and "did you mean 'smoke'?" in err and "Traceback" not in err
    assert repro("run")[2].startswith("error: no notebooks in")
    code, _, err = repro("table")
    assert code == 2 and "repro run --profile smoke" in err
    kept = tmp_path / "results" / "smoke" / "runs" / "vggt_vla"
    kept.mkdir(parents=True)
    (kept / "a.json").touch()
    code, _, err = repro("table")
    shown = "repro ablation --system vggt_vla --profile smoke --tables --join results/smoke/runs/vggt_vla"
    assert code == 2 and "found: ablations' records alone" in err and shown in err
    assert "use --profile" in repro("run", "-p", "profile", "cpu")[2]
    assert repro("publish")[0] == 2
    code, _, err = repro("evaluate", "--check")
    assert code == 2 and "--model FOLDER --store STORE" in err
    code, out, _ = repro("evaluate", "--check", "--model", "nothing", "--store", "nowhere")
    assert code == 1 and out.startswith("[FAIL] loads") and "next step: make it with" in out


def test_run_only_executes_one_notebook_and_fails_with_exit_code_1(repro, tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    cell = '# %% tags=["parameters"]\nprofile = "smoke"\nseed = 0\n\n# %%\nprint(7 // seed)\n'
    for name in ("05_train", "09_evaluate"):
        (tmp_path / "notebooks" / f"{name}.py").write_text(cell)
    code, out, err = repro("run", "--only", "09", "-p", "seed", "2")
    assert (code, err) == (0, "") and "[1/1] 09_evaluate" in out and "done, 3 cells" in out and "05_train" not in out
    code, out, err = repro("run", "--from", "05")
    assert code == 1 and err.startswith("05_train failed in cell 2 of 2 (notebooks/05_train.py, line 6): ZeroDivisionError")
    assert "09_evaluate" not in out


def test_doctor_reports_each_check_with_a_next_step(repro, monkeypatch, tmp_path):
    code, out, err = repro("doctor", "--json")
    report = json.loads(out)
    checks = {check["name"]: check for check in report["checks"]}
    assert list(checks) == [
        "python", "packages", "torch", "torchvision", "memory", "disk", "work folder", "data", "jupyter", "kernel",
    ]  # fmt: skip
    assert checks["kernel"]["status"] == "OK" and checks["jupyter"]["status"] == "OK" and checks["work folder"]["status"] == "OK"
    assert all(check["next_step"] for check in report["checks"] if check["status"] != "OK")
    assert report["machine"]["cores"] == machine.cores()
    assert all(name in checks["data"]["found"] for name in ("-p calvin_root", "-p libero_root", "-p levir_root"))
    assert code == any(check["status"] == "FAIL" for check in report["checks"])


def test_doctor_fails_on_what_cannot_work(repro, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "kernel", lambda: doctor.Check("kernel", doctor.OK, "not started in this test"))
    monkeypatch.setenv("REPRO_CALVIN", str(tmp_path))
    code, out, _ = repro("doctor")
    assert code == 1 and "[FAIL] data" in out and "has no training and no validation" in out and "next step: set REPRO_CALVIN" in out
    for split in ("training", "validation"):
        (tmp_path / split).mkdir()
    assert doctor.data().status == doctor.OK and f"repro run -p calvin_root {tmp_path}" in doctor.data().found
    monkeypatch.delenv("REPRO_CALVIN")
    (tmp_path / "file").touch()
    monkeypatch.setenv("REPRO_WORK", str(tmp_path / "file" / "work"))
    assert "[FAIL] work folder" in repro("doctor")[1]


def test_doctor_compares_packages_with_the_pins_and_finds_a_broken_torchvision(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_ROOT", str(tmp_path))
    (tmp_path / "requirements.txt").write_text("numpy>=1.0  # fine\nclick==0.1\nnot-installed==1.0; python_version < '3'\n")
    check = doctor.packages()
    assert check.status == "WARN" and "click==0.1 pinned" in check.found
    assert "numpy" not in check.found and "not-installed" not in check.found
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = doctor.torchvision()
    assert check.status == "FAIL" and "torchvision::nms" in check.found and "uninstall torchvision" in check.next_step


def test_doctor_finds_a_gpu_too_old_for_torch(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(machine, "capabilities", lambda: [(6, 0)])  # a P100, which Kaggle still lends
    monkeypatch.setattr(machine, "describe", lambda: {"gpus": [{"name": "P100", "memory_gib": 16.0, "capability": "6.0"}]})
    check = doctor.torch()
    assert check.status == "FAIL" and "P100" in check.found and "T4 x2" in check.next_step and torch.__version__ in check.found


def test_train_takes_a_config_file(repro, tmp_path):
    code, _, err = repro("train", str(tmp_path / "missing.json"))
    assert code == 2 and "missing.json" in err


@pytest.mark.parametrize(("content", "said"), [
    ("[]", "job.json is no config"), ("{}", "no name, store, folder"), ('{"name": "a", "store": "b"}', "no folder"),
    ('{"name": "a", "store": "b", "folder": "c", "model": []}', "model of a wrong kind"),
])  # fmt: skip
def test_a_config_of_another_kind_names_what_it_lacks(repro, tmp_path, content, said):
    (tmp_path / "job.json").write_text(content)
    code, _, err = repro("train", "job.json")
    assert code == 2 and err.startswith("error: job.json") and said in err and sorted(os.listdir(tmp_path)) == ["job.json"]


NOWHERE = ("--model", "nothing", "--store", "nowhere")


@pytest.mark.parametrize(("arguments", "said"), [
    (("evaluate", "--suite", "nonsense", *NOWHERE), "'libero_spatial'"),
    (("evaluate", "--layout", "narrow", *NOWHERE), "'wide'"),
    (("evaluate", "--protocol", "mine", *NOWHERE), "'openvla-oft'"),
    (("evaluate", "--check", "--simulator", "mujoco", *NOWHERE), "'tabletop'"),
    (("evaluate", "--episodes", "0", *NOWHERE), "'--episodes'"),
    (("evaluate", "--suite", "libero_spatial", "--layout", "wide", *NOWHERE), "libero_spatial has no wide layout"),
    (("evaluate", "--check", "--suite", "grocery", "--videos", "2", *NOWHERE), "--suite, --videos do nothing with --check"),
    (("evaluate", "--minutes", "2", *NOWHERE), "--minutes does nothing without --check"),
    (("evaluate", "--check", "--blind", "run", *NOWHERE), "--blind does nothing with --check"),
    (("evaluate", "--blind", "run", "--no-floors", *NOWHERE), "--blind does nothing with --no-floors"),
    (("ablation", "--seeds", "a"), "'--seeds': 'a' is not"),
    (("ablation", "--seeds", "1,"), "'--seeds': '1,' is not"),
    (("ablation", "--corrupt", "x"), "'--corrupt': 'x' is not"),
    (("ablation", "--tables", "--corrupt", "nan"), "'--corrupt': 'nan' is not"),
    (("ablation", "--tables", "--seeds", "-1"), "'--seeds': '-1' is not"),
    (("ablation", "--tables", "--minutes", "-3"), "'--minutes': -3.0 is not"),
    (("ablation", "--tables", "--rows", "gase"), "found: gase"),
    (("ablation", "--tables", "--rows", "gaze", "--seeds", "77"), "--rows, --seeds do nothing with --tables"),
    (("demos", "libero", "out", "--workers", "0"), "'--workers'"),
    (("demos", "libero", "out", "--per-task", "0"), "'--per-task'"),
    (("demos", "calvin", "out", "--per-task", "-1"), "'--per-task'"),
    (("calvin", "import", "in", "out", "--workers", "0"), "'--workers'"),
    (("store", "fetch", "url", "out", "--episodes", "0"), "'--episodes'"),
    (("kaggle", "pull", "nonsense"), "'vggt-vla'"),
    (("kaggle", "status", "nonsense"), "'vggt-vla'"),
    (("kaggle", "push", "all", "--owner", "me", "--data", "nonsense"), "'nonsense' is not OWNER/SLUG"),
    (("kaggle", "push", "all", "--owner", "me", "--output", "me/"), "'me/' is not OWNER/SLUG"),
    (("kaggle", "push", "all", "--owner", "me", "--model", "q/qwen"), "'q/qwen' is not OWNER/MODEL/FRAMEWORK/VARIATION/VERSION"),
    (("kaggle", "build", "--times", "nowhere"), "there is no folder nowhere"),
])  # fmt: skip
def test_arguments_are_looked_at_first(repro, tmp_path, arguments, said):
    """Before anything is loaded, asked of a service or written."""
    code, _, err = repro(*arguments)
    assert code == 2 and said in err and "Traceback" not in err and not os.listdir(tmp_path)


def test_evaluates_choices_are_what_there_is():
    import tomllib

    from repro.evaluation import commands, protocols, suites

    assert commands.SUITES == suites.SUITES
    assert sorted(commands.PROTOCOLS) == sorted(tomllib.loads(protocols.MANIFEST.read_text()))


def test_a_folder_that_cannot_be_written_is_named_without_a_traceback(repro, monkeypatch, tmp_path):
    for name in ("file", "requirements.txt", "constraints-kaggle.txt"):
        (tmp_path / name).touch()
    code, _, err = repro("kaggle", "wheels", "file/wheels")
    assert code == 2 and err.startswith("error: file/wheels ") and "cannot be read or written" in err and "found: Not a directory" in err
    assert "next step: give another file or folder" in err and len(err.splitlines()) == 3
    monkeypatch.setenv("REPRO_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["repro", "kaggle", "wheels", "file/wheels"])
    with pytest.raises(NotADirectoryError):
        cli.main()


def test_an_os_error_that_is_no_disks_refusal_keeps_its_traceback(monkeypatch):
    def fails():
        raise OSError("a library's own words")

    monkeypatch.setattr(cli, "cli", fails)
    with pytest.raises(OSError, match="own words"):
        cli.main()


@pytest.mark.parametrize("command", ["evaluate change-agent", "calvin", "calvin import", "libero look", "kaggle build", "store fetch"])
def test_help_is_asked_for_by_h_everywhere(repro, command):
    code, out, _ = repro(*command.split(), "-h")
    assert code == 0 and out.startswith("Usage: ") and "-h, --help" in out


def test_calvin_commands_are_mounted(repro):
    code, out, _ = repro("calvin", "--help")
    assert code == 0 and "extract" in out and "json" in out
    environment = {**os.environ, "COLUMNS": "200"}
    answer = subprocess.run([sys.executable, "-m", "repro", "calvin", "extract", "--help"], capture_output=True, text=True, env=environment)
    assert "--npz_src_dir" in answer.stdout
