package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	cachev1 "cacheclient/cacheservice/v1"
)

const (
	waitAtATime  = 5 * time.Second        // for what others load; a node allows up to a minute
	callTimeout  = time.Second            // what a call may take besides
	pause        = 100 * time.Millisecond // before asking again a node that does not let more callers wait
	staleFor     = 30 * time.Second       // how long past its ttl a value is given while one caller loads the new one
	maxErrorText = 1024                   // bytes
)

// What a loader returns when there is no such value, and getOrLoad then, to all callers, for as long as the
// namespace's absent_ttl_seconds.
var errAbsent = errors.New("there is no such value")

type loader func(ctx context.Context, key string) ([]byte, error)

// The value of the key; of all callers in all processes, whatever their language, one at a time loads what
// is missing or stale. The others wait until ctx is done at most. While the cache cannot be reached, all load.
func getOrLoad(
	ctx context.Context, cache cachev1.CacheServiceClient, key string, ttl time.Duration, load loader,
) ([]byte, error) {
	ask := &cachev1.GetRequest{Key: key, Lease: &cachev1.LeaseOptions{WaitMs: uint32(waitAtATime.Milliseconds())}}
	for {
		call, cancel := context.WithTimeout(ctx, waitAtATime+callTimeout)
		found, err := cache.Get(call, ask)
		cancel()
		isMiss := found.GetOutcome() == cachev1.GetOutcome_GET_OUTCOME_MISS
		switch {
		case ctx.Err() != nil:
			if err == nil && len(found.LeaseToken) > 0 {
				giveBack(ctx, cache, key, found.LeaseToken, "")
			}
			return nil, ctx.Err()
		case isUnreachable(err):
			return load(ctx, key)
		case err != nil:
			return nil, err
		case isMiss && len(found.LeaseToken) > 0:
			return loadUnderLease(ctx, cache, key, ttl, load, found.LeaseToken)
		case isMiss && found.LoadFailure != nil:
			return nil, fmt.Errorf("%s could not be loaded: %s", key, found.LoadFailure.Error)
		case !isMiss:
			if len(found.LeaseToken) > 0 {
				go func() {
					if _, err := loadUnderLease(context.WithoutCancel(ctx), cache, key, ttl, load, found.LeaseToken); err != nil {
						log.Printf("%s could not be loaded anew: %v", key, err)
					}
				}()
			}
			return valueOf(found)
		}
		select { // Others are still loading.
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func loadUnderLease(
	ctx context.Context, cache cachev1.CacheServiceClient, key string, ttl time.Duration, load loader, token []byte,
) ([]byte, error) {
	began := time.Now()
	value, err := load(ctx, key)
	isAbsent := errors.Is(err, errAbsent)
	if err != nil && !isAbsent {
		told := strings.ToValidUTF8(err.Error()[:min(len(err.Error()), maxErrorText)], "")
		if ctx.Err() != nil { // Given up rather than failed: the next caller may load at once.
			told = ""
		}
		if fallback := giveBack(ctx, cache, key, token, told); fallback != nil {
			return valueOf(fallback)
		}
		return nil, err
	}
	fill := &cachev1.SetRequest{Key: key, LeaseToken: token, Absent: isAbsent}
	if !isAbsent {
		fill.Value, fill.TtlSeconds, fill.StaleSeconds = value, ttl.Seconds(), staleFor.Seconds()
		fill.LoadSeconds = time.Since(began).Seconds()
	}
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	// NOT_STORED says that the key was written or removed meanwhile: the value is good for this caller alone.
	if _, failure := cache.Set(call, fill); failure != nil {
		log.Printf("%s was loaded, but not cached: %v", key, failure)
	}
	return value, err
}

// Ends the lease; the entry to go on with, if there is one.
func giveBack(
	ctx context.Context, cache cachev1.CacheServiceClient, key string, token []byte, told string,
) *cachev1.GetResponse {
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	released, err := cache.ReleaseLease(call, &cachev1.ReleaseLeaseRequest{Key: key, LeaseToken: token, Error: told})
	if err != nil {
		log.Printf("the lease of %s was not given back: %v", key, err)
	}
	return released.GetFallback()
}

func valueOf(found *cachev1.GetResponse) ([]byte, error) {
	if found.Outcome == cachev1.GetOutcome_GET_OUTCOME_ABSENT {
		return nil, errAbsent
	}
	return found.Value, nil
}

func isUnreachable(err error) bool {
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.ResourceExhausted
}
