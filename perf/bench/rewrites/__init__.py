"""What each exact rewrite of the sub-models gains by itself."""
