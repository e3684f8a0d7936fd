"""A notebook's cells under the session's clock: where the time is over, the notebook still ends well.

nbclient, papermill and Kaggle call a notebook failed when one cell has an error output, so OutOfTime may not leave a cell. IPython offers
to rewrite each cell before it runs (shell.ast_transformers), and `watch` uses it: from the next cell on

    with <the session's watch>:           # OutOfTime ends the cell, tells the session, and goes no further
        ...the cell's statements...
        sys.displayhook(<its last expression>)      # shown as IPython would have shown it

Once the session is over, also by a cell that never asked for the time, every cell is empty, but the one that calls `finish`; cells of a
section that is skipped are empty up to the next `section`. Real errors and KeyboardInterrupt stay what they are: the session is told, the
cell fails. SIGTERM ends a running cell as OutOfTime does (launch then stops its processes, which keep a checkpoint); between cells it does
what it did before. In a plain Python process nothing is registered.
"""

import ast
import gc
import os
import signal
import sys
import threading
from contextlib import suppress

from repro import clock
from repro.clock import OutOfTime

watching: "Watch | None" = None  # the one of this process; rewritten cells find it here
CALLS = ("section", "finish")  # of the session: cells with them are not skipped


class Watch(ast.NodeTransformer):
    """Rewrites cells, and is the `with` around them. `kit`: a session, with `over`, `skipping`, `stop`, `interrupted`, `failed`."""

    def __init__(self, shell, kit):
        self.shell, self.kit, self.running, self.before = shell, kit, False, None

    def visit_Module(self, cell: ast.Module) -> ast.Module:
        if self.running:  # what a magic such as %%time compiles inside a cell that is watched already
            return cell
        called = self._called(cell)
        if clock.left() < clock.RESERVE and not (self.kit.over or "finish" in called):  # the last cell took it all, and asked for no time
            self.kit.stop("the session's time is over")
        if "finish" not in called and (self.kit.over or (self.kit.skipping and "section" not in called)):
            return ast.Module(body=[], type_ignores=[])
        first = next((i for i, line in enumerate(cell.body) if not _is_future(line)), len(cell.body))
        head, body = cell.body[:first], cell.body[first:]
        if not body:
            return cell
        if isinstance(body[-1], ast.Expr):
            show = ast.parse("__import__('sys').displayhook(None)").body[0]
            show.value.args = [body[-1].value]
            body[-1] = ast.copy_location(show, body[-1])
        around = ast.parse("with __import__('repro.kaggle.cells', fromlist=['watching']).watching: pass").body[0]
        around.body = body
        return ast.fix_missing_locations(ast.Module(body=[*head, ast.copy_location(around, body[0])], type_ignores=[]))

    def _called(self, cell: ast.Module) -> set[str]:
        """Which of CALLS the cell has, of our session and of no other object."""
        return {node.func.attr for node in ast.walk(cell) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                and node.func.attr in CALLS and isinstance(node.func.value, ast.Name)
                and self.shell.user_ns.get(node.func.value.id) is self.kit}  # fmt: skip

    def __enter__(self) -> None:
        self.running = True

    def __exit__(self, kind, error, trace) -> bool:
        self.running = False
        if kind is not None and issubclass(kind, OutOfTime):
            self.kit.stop(str(error))
            return True
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.kit.interrupted()
        elif kind is not None:
            self.kit.failed(kind.__name__)
        return False

    def terminated(self, number: int, frame) -> None:
        """SIGTERM: the running cell ends as at the end of the time. A second one, and one between cells, does what it did before."""
        signal.signal(signal.SIGTERM, self.before)
        if not self.running:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        raise OutOfTime("this process was told to end (SIGTERM)")


def watch(kit) -> None:
    """From the next cell on; in the place of a session that was watched before. Nothing in a plain Python process."""
    global watching
    unwatch()
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return
    watching = Watch(shell, kit)
    shell.ast_transformers.append(watching)
    if threading.current_thread() is threading.main_thread():
        watching.before = signal.signal(signal.SIGTERM, watching.terminated) or signal.SIG_DFL


def unwatch() -> None:
    """Cells run as they are again, and SIGTERM does what it did."""
    if watching is None:
        return
    if watching in watching.shell.ast_transformers:
        watching.shell.ast_transformers.remove(watching)
    if signal.getsignal(signal.SIGTERM) == watching.terminated:
        signal.signal(signal.SIGTERM, watching.before)


def free_gpus() -> None:
    """Give the GPU memory of this process back: the models that a section looked at, by whatever name, move to the CPU. The next section
    trains in processes of its own, on the same GPUs."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    for tensor in [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor) and _on_gpu(one)]:
        with suppress(RuntimeError):  # a result of inference mode cannot be moved in its place; it is no model
            tensor.data, tensor.grad = tensor.data.cpu(), None
    torch.cuda.empty_cache()


def _on_gpu(tensor) -> bool:
    return tensor.is_cuda


def _is_future(line: ast.stmt) -> bool:
    return isinstance(line, ast.ImportFrom) and line.module == "__future__"
