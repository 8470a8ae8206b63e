"""gRPC over HTTP/2 without grpcio: all that nodes serve, and the streams of clients and between nodes.

grpcio hands each message from thread to thread, on either side, which costs several times what it takes to
answer a batch, and twice what an empty call takes here. Here a message goes from the socket to who waits for
it within one callback. Unary calls, which clients make seldom, are made by grpcio; both speak the same
protocol, so that either may be at the other end.

    frames <- stream <- connection <- client, server
"""
