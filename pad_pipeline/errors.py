"""The one exception that a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend.

    Args:
        field: the option, setting or file entry that is wrong, as the user knows it ("--images", "tagger.weights").
        value: what it holds.
        rule: what it should hold, or what went wrong.
        remedy: what to do now.
    """

    def __init__(self, field: str, value: object, rule: str, remedy: str) -> None:
        # All four go to Exception's own args, so that the error survives the pickling between processes.
        super().__init__(field, value, rule, remedy)
        self.field, self.value, self.rule, self.remedy = field, value, rule, remedy

    def __str__(self) -> str:
        text = f"{self.field} = {self.value}: {self.rule}; {self.remedy}"
        return " ".join(text.split())  # one line, whatever a library's message held
