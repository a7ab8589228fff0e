"""Wire schemas of each dialect and their translation to the one native request."""
