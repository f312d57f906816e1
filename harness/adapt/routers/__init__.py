"""From outcomes of drafters to a fitted router and routed decoding."""
