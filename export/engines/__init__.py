"""From a torch sub-model to an artifact: one module or folder an engine."""
