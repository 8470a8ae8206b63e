package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	cachev1 "cacheclient/cacheservice/v1"
)

const (
	workers        = 8
	keysOfAWorker  = 50
	keysOfABatch   = 10
	copies         = 2 // on so many nodes a write has to be, to count as acknowledged
	attemptTimeout = 2 * time.Second
	tellAfter      = 500 // operations
)

type report struct {
	Operations   int64    `json:"operations"`
	Acknowledged int      `json:"acknowledged"` // keys
	Failures     []string `json:"failures"`
	Lost         []string `json:"lost"`
}

// Reads and writes through all nodes until its input ends, and prints a line every 500 operations. Reads every
// key once more then, and prints what failed on all nodes, and which acknowledged writes are lost, as JSON.
func exercise(nodes []cachev1.CacheServiceClient) {
	var stopped atomic.Bool
	var operations atomic.Int64
	var group sync.WaitGroup
	done := make([]*worker, workers)
	for number := range done {
		done[number] = newWorker(number, nodes, &operations)
		group.Go(func() { done[number].work(&stopped) })
	}
	bufio.NewReader(os.Stdin).ReadString('\n')
	stopped.Store(true)
	group.Wait()
	total := report{Operations: operations.Load(), Failures: []string{}, Lost: []string{}}
	for _, each := range done {
		for start := 0; start < keysOfAWorker; start += keysOfABatch {
			each.readBatch(each.keys[start : start+keysOfABatch])
		}
		total.Acknowledged += len(each.acknowledged)
		total.Failures = append(total.Failures, each.failures...)
		total.Lost = append(total.Lost, each.lost...)
	}
	line, err := json.Marshal(total)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(line))
}

// A worker is the only one to write its keys; each value is a number, one higher than the one before.
type worker struct {
	nodes        []cachev1.CacheServiceClient
	operations   *atomic.Int64
	random       *rand.Rand
	turn         int
	keys         []string
	written      map[string]int
	acknowledged map[string]int
	failures     []string
	lost         []string
}

func newWorker(number int, nodes []cachev1.CacheServiceClient, operations *atomic.Int64) *worker {
	keys := make([]string, keysOfAWorker)
	for i := range keys {
		keys[i] = fmt.Sprintf("go:%d:%d", number, i)
	}
	return &worker{
		nodes: nodes, operations: operations, keys: keys, turn: number,
		random:  rand.New(rand.NewPCG(uint64(number), 0)),
		written: map[string]int{}, acknowledged: map[string]int{},
	}
}

func (w *worker) work(stopped *atomic.Bool) {
	for !stopped.Load() {
		w.write(w.some(1)[0])
		w.read(w.some(1)[0])
		w.writeBatch(w.some(keysOfABatch))
		w.readBatch(w.some(keysOfABatch))
	}
}

func (w *worker) write(key string) {
	request := w.next(key)
	written, err := onAnyNode(w, func(ctx context.Context, node cachev1.CacheServiceClient) (*cachev1.SetResponse, error) {
		return node.Set(ctx, request)
	})
	w.note(key, err)
	w.wrote(key, written)
}

func (w *worker) read(key string) {
	found, err := onAnyNode(w, func(ctx context.Context, node cachev1.CacheServiceClient) (*cachev1.GetResponse, error) {
		return node.Get(ctx, &cachev1.GetRequest{Key: key})
	})
	if w.note(key, err) {
		w.found(key, found)
	}
}

func (w *worker) writeBatch(keys []string) {
	batch := &cachev1.BatchSetRequest{}
	for _, key := range keys {
		batch.Requests = append(batch.Requests, w.next(key))
	}
	written, err := onAnyNode(w, func(ctx context.Context, node cachev1.CacheServiceClient) ([]*cachev1.SetResult, error) {
		response, err := node.BatchSet(ctx, batch)
		return response.GetResults(), firstError(response.GetResults(), err)
	})
	if w.note(keys[0], err) {
		for i, result := range written {
			w.wrote(keys[i], result.GetResponse())
		}
	}
}

func (w *worker) readBatch(keys []string) {
	found, err := onAnyNode(w, func(ctx context.Context, node cachev1.CacheServiceClient) ([]*cachev1.GetResult, error) {
		response, err := node.BatchGet(ctx, &cachev1.BatchGetRequest{Keys: keys})
		return response.GetResults(), firstError(response.GetResults(), err)
	})
	if w.note(keys[0], err) {
		for i, result := range found {
			w.found(keys[i], result.GetResponse())
		}
	}
}

func (w *worker) some(count int) []string {
	keys := make([]string, count)
	for i, position := range w.random.Perm(len(w.keys))[:count] {
		keys[i] = w.keys[position]
	}
	return keys
}

func (w *worker) next(key string) *cachev1.SetRequest {
	w.written[key]++
	return &cachev1.SetRequest{Key: key, Value: []byte(strconv.Itoa(w.written[key]))}
}

func (w *worker) wrote(key string, written *cachev1.SetResponse) {
	if written.GetReplicas() >= copies {
		w.acknowledged[key] = w.written[key]
	}
}

func (w *worker) found(key string, found *cachev1.GetResponse) {
	number, _ := strconv.Atoi(string(found.GetValue())) // 0 of what is missing
	if number < w.acknowledged[key] {
		w.lost = append(w.lost, fmt.Sprintf("%s: %d was acknowledged, %d read", key, w.acknowledged[key], number))
	}
}

func (w *worker) note(key string, err error) bool {
	if count := w.operations.Add(1); count%tellAfter == 0 {
		fmt.Println(count)
	}
	if err != nil {
		w.failures = append(w.failures, fmt.Sprintf("%s: %v", key, err))
	}
	return err == nil
}

// Calls the nodes in turn until one answers, each once. What is called has no effect but the first time.
func onAnyNode[Response any](
	w *worker, call func(context.Context, cachev1.CacheServiceClient) (Response, error),
) (response Response, err error) {
	w.turn++
	for attempt := range w.nodes {
		ctx, cancel := context.WithTimeout(context.Background(), attemptTimeout)
		response, err = call(ctx, w.nodes[(w.turn+attempt)%len(w.nodes)])
		cancel()
		if status.Code(err) != codes.Unavailable {
			return response, err
		}
	}
	return response, err
}

// Of a batch, or else of its elements.
func firstError[Result interface{ GetError() *rpcstatus.Status }](results []Result, err error) error {
	for _, result := range results {
		if failed := result.GetError(); failed != nil {
			return status.FromProto(failed).Err()
		}
	}
	return err
}
