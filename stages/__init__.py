"""One annotation step in each file, the networks that the steps run, and the contract for models of a user's own.

A stage is a callable that takes a shard in memory and returns it with more known about its images. A stage may import
torch and `pad_pipeline`'s data modules. It may not import Ray or `pad_pipeline.workflows`.
"""

if __name__ != "pad_pipeline.stages":
    raise ImportError("this folder is the package pad_pipeline.stages; import it by that name")
