package membership

import "sync"

// mailbox is an unbounded queue of inputs to the table. memberlist's callbacks
// hold its node lock, so put must never block.
type mailbox struct {
	ready chan struct{} // capacity 1: something may be in

	mu    sync.Mutex
	items []func(*table)
}

func newMailbox() *mailbox {
	return &mailbox{ready: make(chan struct{}, 1)}
}

// put appends an input. Safe for concurrent use; never blocks.
func (b *mailbox) put(f func(*table)) {
	b.mu.Lock()
	b.items = append(b.items, f)
	b.mu.Unlock()
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// take removes and returns all inputs, oldest first.
func (b *mailbox) take() []func(*table) {
	b.mu.Lock()
	defer b.mu.Unlock()
	items := b.items
	b.items = nil
	return items
}
