"""The stages of annotation (one step in each file), their networks, and the protocol for a user's own models.

A stage is a callable that adds results, such as tags or masks, to the images of a shard in memory. A stage may import
torch and `pad_pipeline`'s data modules. It may not import Ray or `pad_pipeline.workflows`.
"""

if __name__ != "pad_pipeline.stages":
    raise ImportError("this folder is the package pad_pipeline.stages; import it by that name")
