"""What runs inside Triton, front models, engine model and the pipeline between; and the embedded server around it."""
