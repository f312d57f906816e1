"""A suite from samples to records."""
