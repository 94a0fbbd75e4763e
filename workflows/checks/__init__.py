"""What `pad doctor` looks at. No check downloads or writes; what one raises becomes a finding."""
