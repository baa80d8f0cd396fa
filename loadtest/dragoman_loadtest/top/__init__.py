"""`dragoman top`: a running server in the terminal, from its Prometheus endpoint."""
