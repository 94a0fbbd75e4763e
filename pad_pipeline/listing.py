"""List a folder of an object store page by page, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pad_pipeline.retries import ask
from pad_pipeline.stores import attempt


def pages(
    store: Any, path: str, begin: str = "", call: Callable[..., Any] | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Yield the entries of a folder in a store, in parts: dictionaries with `name`, `type` and `size`, as `ls` gives.

    S3 and Google Cloud Storage are asked page by page, and nothing is kept. Of other stores fsspec's `ls` builds the
    whole listing, and may keep it: 0.8 GB for a million objects.

    Args:
        store: fsspec's file system.
        path: the folder in it.
        begin: how the names begin that are wanted. Others may be among the entries.
        call: calls a method of the file system by its name, with its arguments; by default as in `ask`.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it begins so.
    """
    call = call or (lambda *arguments, **options: ask(lambda: attempt(store, *arguments, **options)))
    kinds = {store.protocol} if isinstance(store.protocol, str) else {*store.protocol}
    if not kinds & {"s3", "gs"}:
        yield call("ls", path, detail=True)
        return
    bucket, key, _ = store.split_path(path)
    asked = {"prefix": f"{key.rstrip('/')}/{begin}" if key else begin, "delimiter": "/"}
    found = not key
    token: dict[str, str] = {}
    while True:
        if "s3" in kinds:
            names = {"Bucket": bucket, "Prefix": asked["prefix"], "Delimiter": "/"}
            page = call("call_s3", "list_objects_v2", **names, **store.req_kw, **token)
            folders = [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
            objects = [(entry["Key"], entry["Size"]) for entry in page.get("Contents", [])]
            token = {"ContinuationToken": page["NextContinuationToken"]} if page.get("IsTruncated") else {}
        else:
            page = call("call", "GET", "b/{}/o", bucket, json_out=True, **asked, **token)
            folders = page.get("prefixes", [])
            objects = [(entry["name"], int(entry["size"])) for entry in page.get("items", [])]
            token = {"pageToken": page["nextPageToken"]} if page.get("nextPageToken") else {}
        listed = [{"name": f"{bucket}/{name[:-1]}", "type": "directory", "size": 0} for name in folders]
        listed += [{"name": f"{bucket}/{name}", "type": "file", "size": size} for name, size in objects]
        found = found or bool(listed)
        yield listed
        if not token:
            break
    if not found:
        raise FileNotFoundError(path)
