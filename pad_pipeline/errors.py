"""The exception whose message is written for users."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, changes of the writing direction, and bytes of a file's name that are no text."""


class UserError(Exception):
    """A problem that the user can solve.

    The command line shows parameters as its options: the field, and each name in backticks in the rule or the remedy.

    Args:
        field: the Python parameter, setting or file entry that is wrong ("images", "tagger.weights").
        value: its value.
        rule: the rule that the value breaks, or what went wrong ("it goes with `data`").
        remedy: what the user can do now.
    """

    code = 2
    """The exit code of a command that ends with this error."""

    def __init__(self, field: str, value: object, rule: str, remedy: str) -> None:
        # All four become the `args` of Exception, so that the error can be pickled between processes.
        super().__init__(field, value, rule, remedy)
        self.field, self.value, self.rule, self.remedy = field, value, rule, remedy

    def __str__(self) -> str:
        text = f"{self.field} = {self.value}: {self.rule}; {self.remedy}"
        return printable(" ".join(text.split()))  # one line, even if a library's message has several


class UnavailableError(UserError):
    """A cluster did not give a run what it needs, or went away. The same command continues the run later."""

    code = 4


def printable(text: str) -> str:
    """Return a text with each control character but line breaks and tabs as its escape, such as `\\x1b`. A file's name
    could otherwise change what a terminal shows. Characters that only join letters or emoji stay."""
    return "".join(ascii(one)[1:-1] if one not in "\n\t" and _CONTROL.match(one) else one for one in text)


@contextmanager
def rename_field(**names: str) -> Iterator[None]:
    """Rename the field of a `UserError` that the block raises: `rename_field(shards="heldout")`."""
    try:
        yield
    except UserError as error:
        if error.field not in names:
            raise
        raise type(error)(names[error.field], error.value, error.rule, error.remedy) from error
