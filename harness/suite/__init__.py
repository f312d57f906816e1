"""What a suite file says, and the plan it expands to. Imports no model."""
