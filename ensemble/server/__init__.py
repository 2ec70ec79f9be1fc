"""Starting and watching Triton: the embedded server, the container's start, and the checks before both."""
