"""Read CALVIN's `.npy` dictionaries without running what is in them.

`np.save` stores a dictionary as a pickle, and a pickle may call any function. The reader here knows the few numpy constructors
such a file needs, under their numpy 1 (`numpy.core`) and numpy 2 (`numpy._core`) names, and refuses every other name.
"""

import io
import pickle
from pathlib import Path

import numpy as np

from repro.machine import UserError

READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes as old pickles write them: a latin-1 string and the name of that encoding, no other."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


RECONSTRUCT, SCALAR = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): SCALAR for core in ("core", "_core")},
}


class Unpickler(pickle.Unpickler):
    """Reads numpy arrays, numbers, strings and containers of them; anything else a pickle asks for is refused by name."""

    def __init__(self, data: bytes, path: Path):
        super().__init__(io.BytesIO(data))
        self.path = path

    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise UserError(
                f"{self.path} asks for `{module}.{name}`, which a data file does not need: it may try to run code, and was not loaded.",
                expected="only numpy arrays, numbers, strings, lists, tuples and dictionaries",
                found=f"{module}.{name}",
                next_step="get the file again from where it is distributed; do not open it with allow_pickle=True",
            )
        return ALLOWED[module, name]


def load(path: Path | str) -> np.ndarray:
    """The array in `path`; a pickled dictionary comes back as `load(path).item()`.

    Raises UserError naming the file when it is missing, is not a whole `.npy` file, or asks for a function (see ALLOWED).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing.", expected="a .npy file", found="a folder" if path.is_dir() else "nothing at this path",
                        next_step="correct the path: sentences are in SPLIT/lang_annotations/auto_lang_ann.npy")  # fmt: skip
    with open(path, "rb") as file:
        try:
            shape, fortran, dtype = READ_HEADER[np.lib.format.read_magic(file)](file)
            if dtype.hasobject:
                values = Unpickler(file.read(), path).load()
                return values if isinstance(values, np.ndarray) else np.array(values, dtype=object)
            file.seek(0)
            return np.load(file, allow_pickle=False)
        except UserError:
            raise
        except (ValueError, KeyError, EOFError, IndexError, TypeError, AttributeError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{path} cannot be read.",
                expected="a whole .npy file",
                found=f"{type(error).__name__}: {error}",
                next_step="download it again",
            ) from error


def load_dict(path: Path | str) -> dict:
    """The dictionary in `path`. Raises UserError as `load` does, and when the file holds something else."""
    values = load(path)
    found = values.item() if values.dtype.hasobject and values.shape == () else values
    if not isinstance(found, dict):
        raise UserError(
            f"{path} does not hold a dictionary.",
            expected="a pickled dictionary",
            found=f"{type(found).__name__}, shape {values.shape}",
            next_step="give another file, or download it again: sentences are in SPLIT/lang_annotations/auto_lang_ann.npy",
        )
    return found
