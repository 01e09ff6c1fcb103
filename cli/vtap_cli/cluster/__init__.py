"""The same commands, for a cluster: through the API server, with whatever `kubectl` knows of the way there (decision 0091)."""
