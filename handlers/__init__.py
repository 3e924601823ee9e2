"""TorchServe's side of segserve: the handlers that run in its workers, and the supervisor that runs TorchServe."""
