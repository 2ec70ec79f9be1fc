"""Where frames come from and how pictures are written: files, folders, live streams, JPEG and H.264."""
