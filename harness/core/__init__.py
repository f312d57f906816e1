"""What everything stands on: errors, records, files, limits, statistics, progress. Imports no model and nothing of the other packages."""
