"""What the API can do: one file per domain, with input, output and handler side by side."""
