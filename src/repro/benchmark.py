"""What the scripts in benchmarks/ begin and end with: their options, and the numbers as JSON.

    given = benchmark.options(__doc__).parse_args()
    benchmark.record({"ratio": 4.2}, given.json)
"""

import argparse
import json
import sys
from pathlib import Path


def options(about: str) -> argparse.ArgumentParser:
    """A parser that shows the script's own text for --help and knows --json FILE."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    return parser


def command() -> str:
    """How the script that runs was called, without --json FILE: where the numbers went is of this machine, and decides nothing."""
    words = list(sys.argv[1:])
    while "--json" in words:
        at = words.index("--json")
        del words[at : at + 2]
    return " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *(word for word in words if not word.startswith("--json="))])


def record(found: dict, path: Path | None = None, show: bool = True) -> None:
    """Print the numbers (show=False: the script has printed them its own way), and write them where a file was asked for."""
    text = json.dumps(found, indent=1)
    if show:
        print(text)
    if path:
        path.write_text(text + "\n")
