"""README's tables, each between two marks, written from the run records.

    write_readme("README.md", "results/cpu")        # python -m repro.results --readme results/cpu

The full tables beside the published records (results/cpu/*.md) are written with them.
"""

from pathlib import Path

from repro import ablation_statistics, ablation_tables, change_ablation, run_records, vla_ablation
from repro.real_tables import real_section
from repro.results import between

START = "<!-- ablation: written by `python -m repro.results --readme results/cpu`, checked by tests/test_readme.py -->"
END = "<!-- end of the ablation -->"
REAL_START, REAL_END = "<!-- real simulators: written by the same command from results/sims -->", "<!-- end of real simulators -->"
VLA_START, VLA_END = "<!-- VGGT-VLA: written by the same command from results/cpu -->", "<!-- end of VGGT-VLA -->"
CHANGE_START, CHANGE_END = "<!-- change agent: written by the same command from results/cpu -->", "<!-- end of change agent -->"
CHECK_START, CHECK_END = "<!-- check: results/cpu/check.txt, written by `repro evaluate --check --out` -->", "<!-- end of check -->"


def tables(folder: Path) -> dict[str, str]:
    """{file: its text} of the full tables of `results/<profile>`, from the records there."""
    runs = folder / "runs"
    found = {"ablation.md": (ablation_tables, ablation_statistics.load(runs / "ablation")),
             "vggt_vla.md": (vla_ablation, vla_ablation.load([runs / "vggt_vla"])),
             "change_agent.md": (change_ablation, run_records.load_all(runs / "change_agent"))}
    return {name: of.markdown(records) for name, (of, records) in found.items() if records}


def write_readme(readme: str | Path, folder: str | Path) -> None:
    """Put between their marks in the README: the ablations of `folder`, its check.txt, and `real_section(folder/../sims)`; the full
    `tables` of `folder` into their files."""
    text, folder = Path(readme).read_text(), Path(folder)
    for name, full in tables(folder).items():
        (folder / name).write_text(full)
    for start, end, section in ((START, END, ablation_tables.readme_section(folder)),
                                (VLA_START, VLA_END, vla_ablation.readme_section(folder)),
                                (CHANGE_START, CHANGE_END, change_ablation.readme_section(folder)),
                                (CHECK_START, CHECK_END, f"```\n{(folder / 'check.txt').read_text()}```\n"),
                                (REAL_START, REAL_END, real_section(folder.parent / "sims"))):
        text = between(text, start, end, section)
    Path(readme).write_text(text)
