"""Real client libraries in an environment of their own, against a real gateway: `make test-clients`."""
