"""What runs inside Triton: the front model, its pipeline, the engine runner and the embedded server."""
