"""TGI's contract line by line, on raw bytes: what a client that reads the wire itself would see."""
