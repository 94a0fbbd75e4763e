"""Commands that stand in files of their own; `workflows.cli` registers them."""
