"""What the commands of `pad` do: build, import, train, verify, stats, demo."""
