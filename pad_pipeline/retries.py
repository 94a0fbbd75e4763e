"""Repeat requests to a store, and distinguish "not found" from "no answer"."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from http import HTTPStatus
from itertools import count
from typing import TypeVar, cast

from pad_pipeline.addresses import refusal
from pad_pipeline.errors import UserError

Answer = TypeVar("Answer")
TRIES = 5
"""Number of attempts, the first included, before an error is raised."""
REMEDY = "check the credentials and the network, then run the same command again"
"""What to do about a `StoreError`."""
PAUSE = 0.5
"""Seconds before a store is asked again. Each further pause is twice as long."""


class StoreError(OSError):
    """A store gave no answer or refused, each time. Nothing is known about the file: it may be there, and whole."""


def is_not_found(error: BaseException) -> bool:
    """Return whether a store said that the name does not exist. After any other error the name may exist."""
    status = status_of(error)
    if status is not None:
        return status == HTTPStatus.NOT_FOUND
    # fsspec's HTTP file system raises FileNotFoundError for every failure, and keeps the true error as its cause.
    return isinstance(error, FileNotFoundError) and (error.__cause__ is None or is_not_found(error.__cause__))


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error of any store's library, if it has one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        return cast("int | None", response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    found = [getattr(response, "status_code", None), *(getattr(error, name, None) for name in ("status", "code"))]
    return next((value for value in found if type(value) is int), None)


def is_final(error: Exception) -> bool:
    """Return whether a repetition is useless, because the store refused or the request was invalid."""
    status = status_of(error)
    refused = status is not None and 400 <= status < 500 and status not in (408, 409, 425, 429)
    final = (UserError, StoreError, MemoryError, PermissionError, IsADirectoryError, TypeError, ValueError)
    return refused or isinstance(error, final) or refusal(error) is not None or is_not_found(error)


def ask(question: Callable[[], Answer], before_again: Callable[[], None] = lambda: None) -> Answer:
    """Call `question` and return its result. If it fails, repeat it, with at most `TRIES` attempts in all.

    There is a pause before each repetition, and `before_again` is called. An error that no repetition can change is
    raised at once.
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
