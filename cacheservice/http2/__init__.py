"""gRPC streams over HTTP/2 without grpcio: what travels between clients and nodes, and among nodes.

grpcio hands each message from thread to thread, on either side, which costs several times what it takes to
answer a batch. Here a message goes from the socket to who waits for it within one callback. Only what streams
need is here: unary calls, health and reflection are served and called by grpcio. Both speak the same
protocol, so that either may be at the other end.

    frames <- stream <- connection <- client, server
"""
