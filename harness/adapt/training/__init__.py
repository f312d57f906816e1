"""From the cases a draft got wrong to a trained adapter."""
