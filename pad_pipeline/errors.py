"""The one exception that a user is meant to read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can mend.

    The command line shows a field, and every other parameter named in backticks, as the option of the command.

    Args:
        field: the Python parameter, setting or file entry that is wrong ("images", "tagger.weights").
        value: what it holds.
        rule: what it should hold, or what went wrong. Another parameter is named in backticks: "it goes with `data`".
        remedy: what to do now, with other parameters in backticks too.
    """

    def __init__(self, field: str, value: object, rule: str, remedy: str) -> None:
        # All four go to Exception's own args, so that the error survives the pickling between processes.
        super().__init__(field, value, rule, remedy)
        self.field, self.value, self.rule, self.remedy = field, value, rule, remedy

    def __str__(self) -> str:
        text = f"{self.field} = {self.value}: {self.rule}; {self.remedy}"
        return " ".join(text.split())  # one line, whatever a library's message held


@contextmanager
def rename_field(**names: str) -> Iterator[None]:
    """Replace the field of a `UserError` from the block, where the caller's parameter has another name than the
    callee's: `rename_field(shards="heldout")`."""
    try:
        yield
    except UserError as error:
        if error.field not in names:
            raise
        raise UserError(names[error.field], error.value, error.rule, error.remedy) from error
