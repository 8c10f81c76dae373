package lamd

import (
	"context"
	"fmt"
	"sync"
)

// keyLock is a lock per key whose waiters heed their context: what is done to
// one pod, or to one image, is done by one request at a time. The zero value
// is ready. Safe for concurrent use.
type keyLock[K comparable] struct {
	mu   sync.Mutex // guards below
	held map[K]*keyHolder
}

// keyHolder is a key that somebody has or waits for.
type keyHolder struct {
	token chan struct{} // capacity 1: full while somebody has the key
	users int           // those who have it or wait for it
}

// lock waits for key. The caller calls unlock once.
//
// Expected errors: the context's.
func (k *keyLock[K]) lock(ctx context.Context, key K) (unlock func(), err error) {
	k.mu.Lock()
	h := k.held[key]
	if h == nil {
		h = &keyHolder{token: make(chan struct{}, 1)}
		if k.held == nil {
			k.held = map[K]*keyHolder{}
		}
		k.held[key] = h
	}
	h.users++
	k.mu.Unlock()
	select {
	case h.token <- struct{}{}:
		return func() { <-h.token; k.leave(key, h) }, nil
	case <-ctx.Done():
		k.leave(key, h)
		return nil, fmt.Errorf("wait for another request: %w", ctx.Err())
	}
}

// leave forgets a key that nobody uses any more.
func (k *keyLock[K]) leave(key K, h *keyHolder) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if h.users--; h.users == 0 {
		delete(k.held, key)
	}
}
