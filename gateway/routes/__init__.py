"""One file per noun. A route reads the head of a request, calls a service and decides nothing."""
