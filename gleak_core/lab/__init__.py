"""The lab: an attack on the reader's own picture, live in a page of the book."""
