"""Video for the clients: sources of frames (files, folders, live streams), JPEG and H.264 encoders."""
