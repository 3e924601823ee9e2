"""The forms of an answer: one file each, from what was found to the bytes a client's tools read."""
