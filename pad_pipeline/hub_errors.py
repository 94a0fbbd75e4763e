"""Explain why a file of Hugging Face's hub, or of the web, could not be fetched, and what helps."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from http import HTTPStatus

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pad_pipeline.retries import status_of

_ELSEWHERE = (
    "run once with network; or download it elsewhere and name its local path instead, for a build in the TOML "
    "file of `models`; or point HF_HOME (hub) or PAD_CACHE (other URLs) at a cache that holds it"
)
_BUSY = {HTTPStatus.TOO_MANY_REQUESTS, *(500, 502, 503, 504)}


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, because huggingface_hub hides the answer of the hub behind errors of its cache."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def is_for_now(error: BaseException) -> bool:
    """Return whether the server is busy, so that the same question may be answered later."""
    return any(status_of(one) in _BUSY for one in _with_causes(error))


def explained(error: Exception, reference: str) -> tuple[str, str]:
    """Return the rule and the remedy of a UserError for an error while `reference` was fetched."""
    errors = list(_with_causes(error))

    def found(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in errors)

    statuses = {status_of(one) for one in errors}
    page = f"{constants.ENDPOINT}/{_repository(reference)}"
    if found(GatedRepoError):
        rule = "its authors give it only to those who accept its license"
        if get_token():
            return rule, f"accept it on {page} with the account of your token, wait for the consent, and try again"
        return rule, f"accept it on {page}, make a token in your account's settings there, and set HF_TOKEN to it"
    if found(RepositoryNotFoundError):
        rule = "the hub has no model of this name, or it is private"
        return rule, "correct the name; for a private model, set HF_TOKEN to a token of an account that may read it"
    if found(RevisionNotFoundError):
        return "the hub has no such revision of it", "correct the revision, or leave it out"
    if found(RemoteEntryNotFoundError) or HTTPStatus.NOT_FOUND in statuses:
        return "there is no such file", "correct the name"
    of_web = reference.startswith(("https://", "http://"))
    for status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        if of_web and status in statuses:
            remedy = "check the URL, or download it elsewhere and name its local path"
            return f"its server refuses it ({status.value})", remedy
    if HTTPStatus.UNAUTHORIZED in statuses:
        return "the hub does not accept the token", "set HF_TOKEN to a valid token, or unset it"
    if HTTPStatus.FORBIDDEN in statuses:
        return "access is forbidden", f"look at {page} for what it asks, and check the rights of the token in HF_TOKEN"
    if HTTPStatus.TOO_MANY_REQUESTS in statuses:
        more = "" if of_web else "; with HF_TOKEN set, more is allowed"
        return "the server limits the number of requests", f"try again in some minutes{more}"
    if statuses & _BUSY:
        return "the server is out of order for now", "try again later: what has arrived is kept"
    if any(isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT) for one in errors):
        return "there is no room for it", "make room, or point HF_HOME (hub) or PAD_CACHE (other URLs) at another disk"
    if found(OfflineModeIsEnabled):
        return (
            "it is not in the cache, and HF_HUB_OFFLINE forbids to fetch it",
            f"unset HF_HUB_OFFLINE and {_ELSEWHERE}",
        )
    first_line = (str(error).splitlines() or [""])[0][:120]
    return f"it is not in the cache and could not be fetched ({type(error).__name__}: {first_line})", _ELSEWHERE


def _repository(reference: str) -> str:
    """Return the part of a reference that names a repository: `hf://spaces/a/b@c/file` -> `spaces/a/b`."""
    parts = reference.removeprefix("hf://").partition("@")[0].split("/")
    return "/".join(parts[: 3 if parts[0] in ("spaces", "datasets") else 2])
