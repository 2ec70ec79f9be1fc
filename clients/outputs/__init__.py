"""What is made of answers: files, and events to webhooks. One that fails costs no camera a frame."""
