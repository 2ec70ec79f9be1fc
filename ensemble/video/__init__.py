"""Video sessions on the server: what is remembered of each object, and who is who from frame to frame."""
