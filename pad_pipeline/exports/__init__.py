"""Export shards to formats that other tools read: COCO, FiftyOne, Parquet, and datasets on the Hugging Face hub.

A new format is a new file here, and a command in `pad_pipeline.workflows.commands.export`. Every export writes through
`target.Target`, which makes sure that all files stay below the folder.
"""
