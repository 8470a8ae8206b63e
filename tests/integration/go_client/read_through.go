package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	cachev1 "cacheclient/cacheservice/v1"
)

const loadedTTL = time.Minute

// Prints the value of the key, which may have to be loaded from the port, or else the error. Goes on until its
// input ends, since it may be loading the value anew meanwhile.
func readThrough(cache cachev1.CacheServiceClient, key, originPort string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	value, err := getOrLoad(ctx, cache, key, loadedTTL, func(ctx context.Context, _ string) ([]byte, error) {
		return loadFrom(ctx, originPort)
	})
	if err != nil {
		fmt.Printf("error: %v\n", err)
	} else {
		fmt.Printf("value: %s\n", value)
	}
	io.Copy(io.Discard, os.Stdin)
}

// What the origin says: all that it sends, which is nothing when there is no value, or an error after a "!".
func loadFrom(ctx context.Context, port string) ([]byte, error) {
	connection, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	said, err := io.ReadAll(connection)
	if err != nil {
		return nil, err
	}
	if failure, isFailure := bytes.CutPrefix(said, []byte("!")); isFailure {
		return nil, errors.New(string(failure))
	}
	if len(said) == 0 {
		return nil, errAbsent
	}
	return said, nil
}
