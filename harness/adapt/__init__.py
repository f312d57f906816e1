"""Drafts that learn: adapters, their training, and routers over them."""
