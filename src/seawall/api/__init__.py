"""The verbs as functions: what the command line does, for scripts and notebooks. `seawall` itself names them."""
