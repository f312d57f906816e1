"""What a run left behind: its store, the summary of its records, and the gate over them. Computes, shows nothing."""
