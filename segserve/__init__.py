"""What training and serving must agree on: the spec, the networks and the one path from an image to its mask."""
