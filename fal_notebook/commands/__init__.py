"""The command registry: one function for each command, shared by `%fal` and `fal-nb`."""
