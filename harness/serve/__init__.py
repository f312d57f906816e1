"""An OpenAI-compatible server around a session, and the page that shows drafting."""
