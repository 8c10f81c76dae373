package mpirun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// forgetful is a job whose rank 0 goes back to earlier checkpoints while its
// input arrives.
type forgetful struct {
	mu     sync.Mutex
	got    []byte
	eof    bool
	losses []loss // still to come
	kept   int64  // of the newest checkpoint
	ended  bool
}

// loss happens once at bytes were taken: the input that came after byte to is
// wanted again. The bytes below safe are covered for good.
type loss struct {
	at, to, safe int64
	afterEOF     bool
}

func (f *forgetful) Stdin(ctx context.Context, _ job.ID, offset int64, data []byte, eof bool) (control.StdinTaken, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() != nil {
		return control.StdinTaken{}, ctx.Err()
	}
	if f.ended {
		return control.StdinTaken{}, &control.Error{Status: http.StatusGone}
	}
	end := int64(len(f.got))
	if offset <= end {
		f.got = append(f.got[:end], data[min(end-offset, int64(len(data))):]...)
		f.eof = f.eof || eof
	}
	if len(f.losses) > 0 {
		l := f.losses[0]
		if int64(len(f.got)) >= l.at && (f.eof || !l.afterEOF) {
			f.losses = f.losses[1:]
			f.got, f.eof, f.kept = f.got[:l.to], false, l.safe
		}
	} else if f.eof {
		f.kept = int64(len(f.got))
	}
	return control.StdinTaken{Offset: int64(len(f.got)), Safe: f.kept, SafeEOF: f.eof && len(f.losses) == 0}, nil
}

// What a rebuilt rank has not seen is sent again, also after the end of the
// input was sent; what is covered for good is not kept.
func TestStdinIsSentAgain(t *testing.T) {
	text := strings.Repeat("0123456789abcdef", 20<<10)
	for name, losses := range map[string][]loss{
		"none":                  nil,
		"in the middle":         {{at: 200 << 10, to: 100 << 10, safe: 50 << 10}},
		"back to the start":     {{at: 100 << 10, to: 0}},
		"twice":                 {{at: 200 << 10, to: 100 << 10}, {at: 150 << 10, to: 100 << 10, safe: 100 << 10}},
		"after the end":         {{at: 320 << 10, to: 300 << 10, afterEOF: true}},
		"only the end was lost": {{at: 320 << 10, to: 320 << 10, afterEOF: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &forgetful{losses: losses}
			if err := pumpStdin(t.Context(), f, 1, strings.NewReader(text)); err != nil {
				t.Fatal(err)
			}
			if string(f.got) != text || !f.eof {
				t.Errorf("%d bytes of %d, end %v", len(f.got), len(text), f.eof)
			}
		})
	}
}

// Bytes that were covered for good and are asked for all the same are an error,
// not silence.
func TestStdinThatIsNotKept(t *testing.T) {
	f := &forgetful{losses: []loss{{at: 32 << 10, to: 32 << 10, safe: 32 << 10}, {at: 64 << 10, to: 16 << 10}}}
	err := pumpStdin(t.Context(), f, 1, strings.NewReader(strings.Repeat("x", 100<<10)))
	if err == nil || !strings.Contains(err.Error(), "not kept") {
		t.Error(err)
	}
}

// A terminal that says nothing for a while: what it said before is sent again
// all the same.
func TestStdinIsSentAgainWhileNothingComes(t *testing.T) {
	in, typed := io.Pipe()
	f := &forgetful{}
	done := make(chan error, 1)
	go func() { done <- pumpStdin(t.Context(), f, 1, in) }()
	if _, err := io.WriteString(typed, "first line\n"); err != nil {
		t.Fatal(err)
	}
	all := func() string {
		f.mu.Lock()
		defer f.mu.Unlock()
		return string(f.got)
	}
	await(t, func() bool { return all() == "first line\n" })
	f.mu.Lock()
	f.got = f.got[:5]
	f.mu.Unlock()
	await(t, func() bool { return all() == "first line\n" })
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
	_ = typed.Close()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestInputLogForgets(t *testing.T) {
	l, err := newInputLog()
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for i := range 4 {
		if err := l.append([]byte(strings.Repeat(fmt.Sprint(i), 10))); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.forget(15); err != nil {
		t.Fatal(err)
	}
	if b, err := l.piece(15); err != nil || string(b) != "1111122222222223333333333" {
		t.Errorf("%q, %v", b, err)
	}
	for _, at := range []int64{14, 41} {
		if _, err := l.piece(at); err == nil {
			t.Errorf("%d is kept", at)
		}
	}
}

// await waits until ok holds.
func await(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never")
		}
	}
}
