"""The stages that a build can begin with anew, in their order. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal, get_args

RedoFrom = Literal["tag", "ground", "segment", "patchify"]
"""The first stage that is done again when the images come from shards. What earlier stages found there is kept."""
ORDER: tuple[RedoFrom, ...] = get_args(RedoFrom)
"""The stages that can be done again, in the order in which a shard goes through them."""
