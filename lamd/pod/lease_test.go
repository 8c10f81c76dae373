package pod

import (
	"testing"
	"time"
)

// The story of a lease: renewed, lost, thawed by a late renewal, lost for good.
func TestLease(t *testing.T) {
	const ttl = 2 * time.Second
	l := newLease(0, ttl)
	for _, c := range []struct {
		at   time.Duration
		sent time.Duration // of a renewal; -1: only time passes
		want leaseAction
	}{
		{1 * time.Second, -1, leaseNothing},
		{1 * time.Second, 900 * time.Millisecond, leaseNothing}, // until 2.9 s
		{2500 * time.Millisecond, -1, leaseNothing},
		{2600 * time.Millisecond, 500 * time.Millisecond, leaseNothing}, // older than what is known
		{2900 * time.Millisecond, -1, leaseFreeze},
		{3 * time.Second, -1, leaseNothing},                   // once
		{4 * time.Second, 1 * time.Second, leaseNothing},      // had run out on its way
		{4 * time.Second, 5 * time.Second, leaseNothing},      // from the future
		{5 * time.Second, 4900 * time.Millisecond, leaseThaw}, // until 6.9 s
		{7 * time.Second, -1, leaseFreeze},
		{16800 * time.Millisecond, -1, leaseNothing},
		{16900 * time.Millisecond, -1, leaseKill},
		{17 * time.Second, 17 * time.Second, leaseNothing}, // too late
		{30 * time.Second, -1, leaseNothing},
	} {
		var got leaseAction
		if c.sent < 0 {
			l, got = l.tick(c.at)
		} else {
			l, got = l.renew(c.at, c.sent, ttl)
		}
		if got != c.want {
			t.Errorf("at %v, renewal of %v: action %d, want %d", c.at, c.sent, got, c.want)
		}
	}
}

// A machine that slept past everything kills at once.
func TestLeaseAfterSleep(t *testing.T) {
	if _, a := newLease(0, time.Second).tick(time.Hour); a != leaseKill {
		t.Errorf("action %d", a)
	}
}

func TestNoLease(t *testing.T) {
	l := newLease(0, 0)
	if _, a := l.tick(time.Hour); a != leaseNothing {
		t.Errorf("action %d", a)
	}
	if _, on := l.next(); on {
		t.Error("a pod without a lease waits for its end")
	}
}

// next is never later than the action that is due.
func TestLeaseWakesInTime(t *testing.T) {
	l := newLease(0, time.Second)
	for range 3 {
		at, on := l.next()
		if !on {
			break
		}
		if _, early := l.tick(at - 1); early != leaseNothing {
			t.Errorf("action %d before %v", early, at)
		}
		var a leaseAction
		if l, a = l.tick(at); a == leaseNothing {
			t.Errorf("nothing to do at %v", at)
		}
	}
	if l.phase != leaseDead {
		t.Errorf("phase %d", l.phase)
	}
}
