"""The code behind the commands of `pad`: engines, runs, models, learning, and the command line on top of them."""

if __name__ != "pad_pipeline.workflows":
    raise ImportError("this folder is the package pad_pipeline.workflows; import it by that name")
