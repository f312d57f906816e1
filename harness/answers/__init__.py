"""Many answers of the target at a time, with what a draft learns from."""
