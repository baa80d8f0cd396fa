"""Load testing a translation service: what it carries, and whether it is right while it does."""
