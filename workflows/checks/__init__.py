"""The checks of `pad doctor`. No check downloads or writes; an exception in a check becomes a finding."""
