"""Other servers around the same network, each as its documentation would write it; `bench.servers` starts them."""
