"""A small draft made from its target: prompts, answers, fit, card."""
