// A client in Go of which only the stubs in cacheservice/v1 come from this project; test_go_client.py
// generates them. It writes through one node, reads through another, and prints what it saw as one line
// of JSON. It leaves the key "go:greeting" behind. Anything unexpected ends it with status 1.
//
//	go run . HOST:PORT HOST:PORT
//	go run . load HOST:PORT KEY ORIGIN_PORT
//	go run . exercise HOST:PORT...
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	cachev1 "cacheclient/cacheservice/v1"
)

const ttlSeconds = 600

type summary struct {
	Key      string   `json:"key"`
	Outcome  string   `json:"outcome"`
	Value    string   `json:"value"`
	Version  uint64   `json:"version"`
	Replicas uint32   `json:"replicas"`
	ServedBy string   `json:"served_by"`
	Hops     uint32   `json:"hops"`
	Batch    []string `json:"batch"`
	Exchange []string `json:"exchange"`
	Refused  refusal  `json:"refused"`
}

type refusal struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Reason  string `json:"reason"`
	Domain  string `json:"domain"`
	Field   string `json:"field"`
}

func main() {
	log.SetFlags(0)
	if len(os.Args) == 5 && os.Args[1] == "load" {
		readThrough(connect(os.Args[2]), os.Args[3], os.Args[4])
		return
	}
	if len(os.Args) > 2 && os.Args[1] == "exercise" {
		var nodes []cachev1.CacheServiceClient
		for _, address := range os.Args[2:] {
			nodes = append(nodes, connect(address))
		}
		exercise(nodes)
		return
	}
	if len(os.Args) != 3 {
		log.Fatal("usage: go_client HOST:PORT HOST:PORT, or go_client load HOST:PORT KEY ORIGIN_PORT, or go_client exercise HOST:PORT...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	found, err := run(ctx, connect(os.Args[1]), connect(os.Args[2]))
	if err != nil {
		log.Fatal(err)
	}
	line, err := json.Marshal(found)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(line))
}

func connect(address string) cachev1.CacheServiceClient {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	return cachev1.NewCacheServiceClient(connection)
}

func run(ctx context.Context, first, second cachev1.CacheServiceClient) (*summary, error) {
	key, value := "go:greeting", "hello from Go"
	written, err := first.Set(ctx, &cachev1.SetRequest{Key: key, Value: []byte(value), TtlSeconds: ttlSeconds})
	if err != nil {
		return nil, fmt.Errorf("set: %w", err)
	}
	read, err := second.Get(ctx, &cachev1.GetRequest{Key: key})
	if err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	if string(read.Value) != value || read.Version != written.Version {
		return nil, fmt.Errorf("wrote %q as version %d, read %v", value, written.Version, read)
	}
	if read.TtlSeconds <= 0 || read.TtlSeconds > ttlSeconds {
		return nil, fmt.Errorf("wrote a ttl of %d s, read %v", ttlSeconds, read)
	}
	batch, err := throughBatches(ctx, first, second)
	if err != nil {
		return nil, err
	}
	exchanged, err := throughExchange(ctx, first)
	if err != nil {
		return nil, err
	}
	refused, err := provokeRefusal(ctx, first)
	if err != nil {
		return nil, err
	}
	return &summary{
		Key:      key,
		Outcome:  read.Outcome.String(),
		Value:    string(read.Value),
		Version:  read.Version,
		Replicas: written.Replicas,
		ServedBy: read.ServedBy,
		Hops:     read.Hops,
		Batch:    batch,
		Exchange: exchanged,
		Refused:  refused,
	}, nil
}

// Writes several entries through the first node, and gives what the second reads; "-" is a miss.
func throughBatches(ctx context.Context, first, second cachev1.CacheServiceClient) ([]string, error) {
	keys := []string{"go:one", "go:two", "go:three"}
	var requests []*cachev1.SetRequest
	for _, key := range keys {
		requests = append(requests, &cachev1.SetRequest{Key: key, Value: []byte("value of " + key)})
	}
	written, err := first.BatchSet(ctx, &cachev1.BatchSetRequest{Requests: requests})
	if err != nil {
		return nil, fmt.Errorf("batch set: %w", err)
	}
	read, err := second.BatchGet(ctx, &cachev1.BatchGetRequest{Keys: append(keys, "go:absent")})
	if err != nil {
		return nil, fmt.Errorf("batch get: %w", err)
	}
	if _, err := first.BatchDelete(ctx, &cachev1.BatchDeleteRequest{Keys: keys}); err != nil {
		return nil, fmt.Errorf("batch delete: %w", err)
	}
	var values []string
	for i, result := range read.Results {
		if failed := result.GetError(); failed != nil {
			return nil, fmt.Errorf("batch get: %w", status.FromProto(failed).Err())
		}
		got := result.GetResponse()
		if got.Outcome == cachev1.GetOutcome_GET_OUTCOME_MISS {
			values = append(values, "-")
			continue
		}
		if stored := written.Results[i].GetResponse(); got.Version != stored.GetVersion() {
			return nil, fmt.Errorf("%s: wrote %v, read %v", keys[i], stored, got)
		}
		values = append(values, string(got.Value))
	}
	return values, nil
}

// Writes, reads and removes entries by batches on one stream, the fastest way for many keys, and gives what
// was read; "-" is a miss. A program with many goroutines keeps one such stream to a node, has each batch
// carry what they want at that moment, and hands out the answers by batch_id, in whatever order they come.
func throughExchange(ctx context.Context, node cachev1.CacheServiceClient) ([]string, error) {
	stream, err := node.Exchange(ctx)
	if err != nil {
		return nil, fmt.Errorf("exchange: %w", err)
	}
	keys := []string{"go:four", "go:five"}
	write := &cachev1.SetColumns{Keys: keys, Values: [][]byte{[]byte("4"), []byte("5")}, TtlMs: []uint64{60_000}}
	read := &cachev1.GetColumns{Keys: append(keys, "go:absent"), ValuesOnly: true}
	var values []string
	for id, request := range []*cachev1.ExchangeRequest{
		{Batch: &cachev1.ExchangeRequest_Set{Set: write}},
		{Batch: &cachev1.ExchangeRequest_Get{Get: read}},
		{Batch: &cachev1.ExchangeRequest_Delete{Delete: &cachev1.DeleteColumns{Keys: keys}}},
	} {
		request.BatchId = uint64(id)
		if err := stream.Send(request); err != nil {
			return nil, fmt.Errorf("exchange: %w", err)
		}
		answer, err := stream.Recv()
		if err != nil {
			return nil, fmt.Errorf("exchange: %w", err)
		}
		if answer.BatchId != request.BatchId || answer.Refused != nil || len(answer.Errors) > 0 {
			return nil, fmt.Errorf("exchange: %v was answered with %v", request, answer)
		}
		for i, outcome := range answer.GetGet().GetOutcomes() {
			if outcome == cachev1.GetOutcome_GET_OUTCOME_MISS {
				values = append(values, "-")
			} else {
				values = append(values, string(answer.GetGet().Values[i]))
			}
		}
	}
	return values, stream.CloseSend()
}

// Sends a request that is out of bounds, and gives what the error tells.
func provokeRefusal(ctx context.Context, node cachev1.CacheServiceClient) (refusal, error) {
	_, err := node.Set(ctx, &cachev1.SetRequest{Key: "go:refused", TtlSeconds: -1})
	refused, ok := status.FromError(err)
	if !ok || refused.Code() != codes.InvalidArgument {
		return refusal{}, fmt.Errorf("a negative ttl was answered with %v", err)
	}
	for _, detail := range refused.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return refusal{
				Code:    refused.Code().String(),
				Message: refused.Message(),
				Reason:  info.Reason,
				Domain:  info.Domain,
				Field:   info.Metadata["field"],
			}, nil
		}
	}
	return refusal{}, fmt.Errorf("an error without ErrorInfo: %w", err)
}
