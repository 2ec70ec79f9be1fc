"""The dashboard: a web page that shows a running fleet's cameras and edits what they look for."""
