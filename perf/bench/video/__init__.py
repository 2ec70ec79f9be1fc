"""Videos on a GPU: what an object costs, and how many frames of how many videos a server carries."""
