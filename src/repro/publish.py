"""From work/<profile> to the committed results/<profile>: executed notebooks without what is this machine's, records, figures, report.

`repro publish --profile smoke`. Refuses when a notebook is not freshly executed; the committed copies are held to `problems` by a test.
"""

import os
import re
import shutil
from pathlib import Path

from repro import freshness, machine, notebooks, profiles
from repro.machine import UserError

ENTRIES = ("runs", "figures", "report.md", "report.html")  # beside notebooks/; those that the run made
TEXT = (".md", ".html", ".json", ".jsonl", ".csv", ".svg", ".txt")


def problems(notebook, source: Path) -> list[str]:
    """What keeps an executed copy from being committed: not executed whole, errors, another text than its source, nothing compared.

    nbval finds none of these: a never-executed notebook passes it.
    """
    found = []
    added = set(notebooks.ADDED_TAGS)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    counts = [cell.execution_count for cell in code]
    if None in counts:
        found.append(f"never executed: {counts.count(None)} of {len(code)} code cells have no execution count; run it anew")
    elif counts != sorted(set(counts)):
        found.append(f"cells were executed out of order: execution counts {counts}; run it anew, top to bottom")
    if any(output.output_type == "error" for cell in code for output in cell.outputs):
        found.append("a cell ends in an error output; mend the source and run it anew")
    if notebook.metadata.get("papermill", {}).get("exception"):
        found.append("papermill recorded an exception; run it anew")
    own = [(cell.cell_type, cell.source) for cell in notebook.cells if not added & set(cell.metadata.get("tags", ()))]
    if own != [(cell.cell_type, cell.source) for cell in notebooks.convert(source).cells]:
        found.append(f"stale: its cells are not those of {source.parent.name}/{source.name}; run it anew and publish")
    if not any("nbval-check-output" in cell.metadata.get("tags", ()) and re.search(r"\d", shown(cell)) for cell in code):
        found.append("no cell tagged nbval-check-output shows a number: tag the one that prints the table")
    return found


def shown(cell) -> str:
    """The text which nbval compares: streams and text/plain."""
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def strip(notebook, root: Path, work: Path):
    """The notebook without timings, widget state and paths of this machine. Outputs, counts, tags and parameters stay."""
    ran = notebook.metadata.get("papermill", {})
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "papermill": {"exception": ran.get("exception"), "parameters": ran.get("parameters", {})},
    }
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if "injected-parameters" in cell.metadata.get("tags", ()):
            cell["id"] = "injected-parameters"  # papermill draws it at random
        for output in cell.get("outputs", ()):
            if "text" in output:
                output["text"] = _anonymous(output["text"], root, work)
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/") and isinstance(value, str):
                    output["data"][kind] = _anonymous(value, root, work)
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return notebook


def _anonymous(text: str, root: Path, work: Path) -> str:
    """Paths relative to the repository; the work folder as work/<profile> wherever it is; the home folder as ~."""
    if not work.is_relative_to(root):
        text = text.replace(str(work), f"work/{work.name}")
    return text.replace(f"{root}/", "").replace(str(root), ".").replace(str(Path.home()), "~")


def publish(profile: str, root: Path | None = None, echo=print) -> Path:
    """Replace results/<profile>'s notebooks, runs, figures and report by those of work/<profile>. Refuses stale ones by name."""
    import nbformat

    profiles.get(profile)
    root = root or machine.root()
    work, target = machine.work(profile), root / "results" / profile
    folder = work / "notebooks"
    every = notebooks.sources(root)
    copies, wrong = {}, []
    for i, path in enumerate(every):
        last = freshness.manifest(folder, path.stem) or {}
        values = last.get("parameters", {})
        prints = freshness.fingerprint(path, values, every[:i], folder, freshness.surroundings(root, values))
        reason = freshness.stale(folder, path.stem, prints, work)
        if reason is None and values != {"profile": profile}:
            reason = f"was run with its own parameters {values}; a reference result is the profile's: run without -p"
        if reason is None:
            copies[path.stem] = nbformat.read(folder / f"{path.stem}.ipynb", as_version=4)
        wrong += [f"{path.stem}: {problem}" for problem in ([reason] if reason else problems(copies[path.stem], path))]
    if wrong:
        raise UserError(
            f"results/{profile} is left as it is: not every notebook is freshly executed and whole",
            expected="each notebook executed with the present code",
            found="; ".join(wrong),
            next_step=f"repro run --profile {profile}, then publish",
        )
    part = target.with_name(f"{profile}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "notebooks").mkdir(parents=True)
    for stem, notebook in copies.items():
        nbformat.write(strip(notebook, root, work), part / "notebooks" / f"{stem}.ipynb")
    for name in ENTRIES:
        if (work / name).is_dir():
            shutil.copytree(work / name, part / name)
        elif (work / name).is_file():
            shutil.copy2(work / name, part / name)
    _refuse_private_paths(part, root, work)
    for made in sorted(part.iterdir()):
        _swap(made, target / made.name)
    for name in ENTRIES:  # what the run did not make: of an older publication
        if not (work / name).exists():
            shutil.rmtree(target / name) if (target / name).is_dir() else (target / name).unlink(missing_ok=True)
    part.rmdir()
    echo(f"published {len(copies)} notebooks to {target}")
    return target


def _refuse_private_paths(part: Path, root: Path, work: Path) -> None:
    """Records and reports must name no folder of this machine (a home folder's name is a person's name)."""
    for file in sorted(part.rglob("*")):
        if file.suffix in TEXT and re.search("|".join(re.escape(f"{p}/") for p in (root, work, Path.home())), file.read_text()):
            raise UserError(
                f"{file.relative_to(part)} names a folder of this machine",
                expected="paths relative to the repository or the work folder",
                found=f"{root}, {work} or {Path.home()}",
                next_step="correct what writes that file, run again, then publish",
            )


def _swap(made: Path, place: Path) -> None:
    """Put a file or folder in its place by renames: the old one is there until the new one is."""
    place.parent.mkdir(parents=True, exist_ok=True)
    old = place.with_name(f"{place.name}.old")
    if place.exists():
        os.replace(place, old)
    os.replace(made, place)
    shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
