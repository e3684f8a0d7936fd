"""Where am I: Kaggle or laptop, which devices, which dtype and why, where work is written, how long is left."""


class UserError(ValueError):
    """Bad input. Says what is wrong, what was expected, what was found and what to do next, each on its own line."""

    def __init__(self, what: str, expected: object = None, found: object = None, next_step: str | None = None):
        lines = [what]
        for name, value in (("expected", expected), ("found", found), ("next step", next_step)):
            if value is not None:
                lines.append(f"  {name}: {value}")
        super().__init__("\n".join(lines))
