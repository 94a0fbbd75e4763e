"""Ask a store again where that may help, and tell "there is nothing" from "there is no answer"."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from http import HTTPStatus
from itertools import count
from typing import TypeVar, cast

Answer = TypeVar("Answer")
TRIES = 5
"""How often a store is asked before its answer counts."""
PAUSE = 0.5
"""Seconds before a store is asked again. Each further pause is twice as long."""


def is_not_found(error: BaseException) -> bool:
    """Return whether an error of a store says that there is nothing of this name. Any other error says nothing about
    that, so nobody may take it for "no"."""
    status = _status(error)
    if status is not None:
        return status == HTTPStatus.NOT_FOUND
    # fsspec's HTTP file system raises FileNotFoundError for all that goes wrong, caused by the true error.
    return isinstance(error, FileNotFoundError) and (error.__cause__ is None or is_not_found(error.__cause__))


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of any store's library, if it has one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        return cast("int | None", response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    found = [getattr(response, "status_code", None), *(getattr(error, name, None) for name in ("status", "code"))]
    return next((value for value in found if type(value) is int), None)


def is_final(error: Exception) -> bool:
    """Return whether it is useless to ask a store again after an error: it refused, or the question was wrong."""
    status = _status(error)
    refused = status is not None and 400 <= status < 500 and status not in (408, 409, 425, 429)
    wrong = isinstance(error, (PermissionError, IsADirectoryError, TypeError, ValueError))
    return refused or wrong or is_not_found(error)


def ask(question: Callable[[], Answer], before_again: Callable[[], None] = lambda: None) -> Answer:
    """Return the answer to a question to a store. After an error, ask up to `TRIES` times in all, with pauses.

    An error that no repetition can change is raised at once. `before_again` is called before each repetition.
    """
    for attempt in count(1):
        try:
            return question()
        except Exception as error:
            if attempt == TRIES or is_final(error):
                raise
        before_again()
        time.sleep(PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")
