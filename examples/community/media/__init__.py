"""The media of a community site: tasks on jobplane's own worker, with progress, a session per call, and async."""
