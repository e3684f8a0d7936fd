"""Print those of the test files named that can be imported here, where torch is not installed; any other failure is a failure."""

import importlib
import sys
from pathlib import Path

LEFT_OUT = {"torch", "transformers", "tokenizers", "safetensors", "accelerate", "diffusers", "peft", "bitsandbytes"}  # by .ci/other-pythons

sys.path[:0] = ["tests", "benchmarks"]
for path in map(Path, sys.argv[1:]):
    try:
        importlib.import_module(path.stem)
    except ModuleNotFoundError as error:
        if error.name not in LEFT_OUT:
            raise
        continue
    print(path)
