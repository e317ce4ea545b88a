"""A community site: two services on one broker, and their jobs. `python -m examples.community` starts all of it."""
