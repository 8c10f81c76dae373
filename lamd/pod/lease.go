package pod

import "time"

// leaseKillAfter is how long after the end of its lease a frozen pod is
// killed: by then its job runs elsewhere, or has ended.
const leaseKillAfter = 10 * time.Second

// leasePhase is what the lease allows.
type leasePhase int

const (
	leaseHeld    leasePhase = iota // the ranks may compute
	leaseExpired                   // the ranks are frozen, the link is down
	leaseDead                      // the pod is to be killed; final
)

// leaseState is the pure core of the lease: when the pod's right to compute
// ends. Times are CLOCK_BOOTTIME, which goes on while the machine sleeps. A
// zero ttl means that there is no lease and nothing ever expires.
type leaseState struct {
	phase    leasePhase
	deadline time.Duration
	on       bool
}

// newLease starts a lease of length ttl at now.
func newLease(now, ttl time.Duration) leaseState {
	return leaseState{deadline: now + ttl, on: ttl > 0}
}

// leaseAction is what the driver is to do after a step.
type leaseAction int

const (
	leaseNothing leaseAction = iota
	leaseFreeze              // stop the ranks, take the link down
	leaseThaw                // link up, let the ranks go on
	leaseKill                // end the pod
)

// renew takes a renewal that was asked for at sent and is good for ttl. An
// older one than is known changes nothing; neither does one that has run out
// on its way.
func (l leaseState) renew(now, sent, ttl time.Duration) (leaseState, leaseAction) {
	if !l.on || l.phase == leaseDead || sent > now || sent+ttl <= l.deadline {
		return l, leaseNothing
	}
	l.deadline = sent + ttl
	return l.tick(now)
}

// tick compares the clock with the lease.
func (l leaseState) tick(now time.Duration) (leaseState, leaseAction) {
	switch {
	case !l.on || l.phase == leaseDead:
		return l, leaseNothing
	case now >= l.deadline+leaseKillAfter:
		l.phase = leaseDead
		return l, leaseKill
	case now >= l.deadline && l.phase == leaseHeld:
		l.phase = leaseExpired
		return l, leaseFreeze
	case now < l.deadline && l.phase == leaseExpired:
		l.phase = leaseHeld
		return l, leaseThaw
	}
	return l, leaseNothing
}

// next returns when tick is due: the driver sleeps until then.
func (l leaseState) next() (time.Duration, bool) {
	switch {
	case !l.on || l.phase == leaseDead:
		return 0, false
	case l.phase == leaseExpired:
		return l.deadline + leaseKillAfter, true
	}
	return l.deadline, true
}
