"""The long-lived loop: answer, keep what went wrong, train, answer better."""
