package scheduler

import (
	"context"
	"sync"
)

// Update is a change of the replicated state.
type Update struct {
	State   *State // after it; State.Index is its number
	Actions []Action
	// Missed says that updates before this one are not given: the reader was
	// too slow, or the node took over a snapshot. It looks at State instead.
	Missed bool
}

// backlog bounds the updates kept for a slow reader.
const backlog = 4096

// Watcher reads the updates of a Scheduler in order. One goroutine at a time
// may call Next. Close releases it.
type Watcher struct {
	hub   *hub
	ready chan struct{} // capacity 1

	mu     sync.Mutex
	queue  []Update
	missed bool
}

// Next returns the next update, waiting for it.
//
// Expected errors: that of ctx.
func (w *Watcher) Next(ctx context.Context) (Update, error) {
	for {
		if u, ok := w.pop(); ok {
			return u, nil
		}
		select {
		case <-ctx.Done():
			return Update{}, context.Cause(ctx)
		case <-w.ready:
		}
	}
}

// Close ends the watch.
func (w *Watcher) Close() { w.hub.remove(w) }

func (w *Watcher) pop() (Update, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return Update{}, false
	}
	u := w.queue[0]
	w.queue = w.queue[1:]
	u.Missed = u.Missed || w.missed
	w.missed = false
	return u, true
}

func (w *Watcher) push(u Update) {
	w.mu.Lock()
	if len(w.queue) >= backlog {
		w.queue, w.missed = nil, true
	}
	w.queue = append(w.queue, u)
	w.mu.Unlock()
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// hub passes updates to all watchers. Lock order: hub.mu before Watcher.mu.
type hub struct {
	mu       sync.Mutex
	watchers map[*Watcher]struct{}
}

func (h *hub) add() *Watcher {
	w := &Watcher{hub: h, ready: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watchers == nil {
		h.watchers = map[*Watcher]struct{}{}
	}
	h.watchers[w] = struct{}{}
	return w
}

func (h *hub) remove(w *Watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
}

func (h *hub) publish(u Update) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		w.push(u)
	}
}
