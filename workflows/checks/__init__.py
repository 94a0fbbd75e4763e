"""What `pad doctor` looks at. No check raises, downloads or writes."""
