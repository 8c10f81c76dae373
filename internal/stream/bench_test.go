package stream

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// benchPairs makes connections that hold size unread bytes each: what fits the
// receive queue there, the rest in the send queue.
func benchPairs(b *testing.B, pairs, size int) (*stage, *Streams) {
	s := newStage(b)
	for range pairs {
		l := s.listener()
		a, c := s.pair(l)
		s.close(l)
		must(b, unix.SetNonblock(a, true))
		for sent := 0; sent < size; {
			n, err := unix.SendmsgN(a, make([]byte, size-sent), nil, nil, unix.MSG_NOSIGNAL)
			if err != nil {
				b.Fatal(err)
			}
			sent += n
		}
		s.arrives(c, min(size, 1<<19))
	}
	return s, s.ns.streams(b, nil)
}

func sizes() []int { return []int{0, 64 << 10, 1 << 20} }

// perEnd reports the time of one end of a connection; an iteration is over
// 2*pairs ends.
func perEnd(b *testing.B, pairs int) {
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*2*pairs), "us/end")
	b.ReportMetric(0, "ns/op")
}

const benchConns = 3 // of a rank in a job of four

// BenchmarkScan is the inventory: duplicates, options, states.
func BenchmarkScan(b *testing.B) {
	s, st := benchPairs(b, benchConns, 0)
	for b.Loop() {
		set, err := st.Scan(b.Context(), s.procs())
		must(b, err)
		must(b, set.Close())
	}
	perEnd(b, benchConns)
}

// BenchmarkCapture is both capture phases.
func BenchmarkCapture(b *testing.B) {
	for _, size := range sizes() {
		b.Run(fmt.Sprintf("%dKB", size>>10), func(b *testing.B) {
			s, st := benchPairs(b, benchConns, size)
			set, err := st.Scan(b.Context(), s.procs())
			must(b, err)
			for b.Loop() {
				must(b, set.CaptureSend(b.Context()))
				must(b, set.CaptureRecv(b.Context()))
			}
			perEnd(b, benchConns)
			must(b, set.Close())
		})
	}
}

// BenchmarkRestore puts connections back in place, and releases them.
func BenchmarkRestore(b *testing.B) {
	for _, size := range sizes() {
		b.Run(fmt.Sprintf("%dKB", size>>10), func(b *testing.B) {
			s, st := benchPairs(b, benchConns, size)
			rec, err := s.capture(st)
			must(b, err)
			gen := uint64(os.Getpid())
			for b.Loop() {
				gen++
				must(b, s.back(st, rec, gen))
			}
			perEnd(b, benchConns)
		})
	}
}
