"""A local web page that shows drafting token by token."""
