"""The projector's training: patches learn the words of what they show."""
