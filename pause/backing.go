package pause

import (
	"errors"
	"fmt"
	"time"
)

// Backing says how the memory of an epoch is kept.
type Backing string

// The backings. Whatever is chosen, nothing but the stall differs: the copy is
// the same, and so is the image.
const (
	// BackingAuto decides for each process and round; see [decide].
	BackingAuto Backing = "auto"
	// BackingCopy copies changed memory while the ranks are frozen.
	BackingCopy Backing = "copy"
	// BackingFork copies it when they run again, from a frozen copy-on-write
	// copy of the process, wherever that is possible.
	BackingFork Backing = "fork"
)

// ParseBacking reads the name of a backing; the empty name is auto.
//
// Expected errors: one that quotes an unknown name.
func ParseBacking(name string) (Backing, error) {
	switch b := Backing(name); b {
	case "":
		return BackingAuto, nil
	case BackingAuto, BackingCopy, BackingFork:
		return b, nil
	}
	return "", fmt.Errorf("pause: backing %q: want auto, copy or fork", name)
}

const (
	// stallGoal is how long copying may stall the ranks before a fork is
	// thought of: a third of the 30 ms that a whole stall should take.
	stallGoal = 10 * time.Millisecond

	// afterShare and afterMost bound what writes after a fork may cost the
	// program more than copying in the stall would: one part in so many of the
	// time between two checkpoints, but no more than 500 ms, which is less than
	// two percent of the usual 30 s.
	afterShare = 30
	afterMost  = 500 * time.Millisecond

	// faultCost is what the first write to a page after a fork costs: the fault
	// and the copy of 4 KB.
	faultCost = 4 * time.Microsecond

	// copyRateFirst and forkRateFirst are assumed until there are measurements:
	// bytes a second that one process is copied with while others are too, and
	// bytes of memory whose page tables a fork copies.
	copyRateFirst = 4 << 30
	forkRateFirst = 30 << 30

	// rateBytes is how much must have been worked on for a measurement to count.
	rateBytes = 8 << 20
)

// outlook is what the choice of a backing rests on.
type outlook struct {
	changed  int64         // bytes that must be copied
	present  int64         // bytes of the process' own memory
	room     int64         // bytes that the budget still allows to this process
	copyRate float64       // bytes a second, as measured last
	forkRate float64       // bytes of present memory a second, as measured last
	after    time.Duration // what writes after the last fork cost the program
	since    time.Duration // since the checkpoint before; 0 for none
	reaper   bool          // orphans would come to its parent in the pod
}

// choice is a backing and why, in words for people.
type choice struct {
	fork   bool
	reason string
}

// decide chooses the backing of one process. Copying is the better one when
// little changed: it costs the program nothing afterwards. Beyond stallGoal the
// fork is chosen, which stalls for the copy of the page tables only, unless
// memory for both versions of every page is lacking, or the program was seen to
// pay too much for its writes after a fork.
func decide(mode Backing, o outlook) choice {
	seconds := func(bytes int64, rate float64) time.Duration {
		return time.Duration(float64(bytes) / rate * float64(time.Second))
	}
	stall, forking := seconds(o.changed, o.copyRate), seconds(o.present, o.forkRate)
	mb, msec := o.changed>>20, ms(stall)
	switch {
	case mode == BackingCopy:
		return choice{reason: "configured"}
	case o.reaper:
		return choice{reason: "the program reaps orphans, and would see a fork"}
	case o.room < o.present:
		return choice{reason: fmt.Sprintf("the memory budget has %d MB left, a fork may need %d", o.room>>20, o.present>>20)}
	case mode == BackingFork:
		return choice{true, "configured"}
	case stall <= stallGoal:
		return choice{reason: fmt.Sprintf("%d MB changed, copied in %.1f ms", mb, msec)}
	case forking >= stall:
		return choice{reason: fmt.Sprintf("%d MB changed, copied in %.1f ms; to fork %d MB takes as long", mb, msec, o.present>>20)}
	case o.since > 0 && o.after-stall > min(o.since/afterShare, afterMost):
		return choice{reason: fmt.Sprintf("writes after a fork cost the program %.0f of the %.0f ms between checkpoints", ms(o.after), ms(o.since))}
	}
	return choice{true, fmt.Sprintf("%d MB changed, to copy them would stall for %.1f ms", mb, msec)}
}

// habits is what was learnt of a process in earlier rounds.
type habits struct {
	copyRate, forkRate float64 // 0 before the first measurement
	after              time.Duration
	last               time.Time // of the capture before; zero for none
}

// rate mixes a new measurement into an old rate; both in bytes a second.
func rate(old float64, bytes int64, took time.Duration) float64 {
	if bytes < rateBytes || took <= 0 {
		return old
	}
	now := float64(bytes) / took.Seconds()
	if old == 0 {
		return now
	}
	return (old + now) / 2
}

// outlook completes what is known of this round with what was learnt before.
func (h *habits) outlook(changed, present, room int64, reaper bool) outlook {
	o := outlook{
		changed: changed, present: present, room: room, reaper: reaper,
		copyRate: h.copyRate, forkRate: h.forkRate, after: h.after,
	}
	if o.copyRate == 0 {
		o.copyRate = copyRateFirst
	}
	if o.forkRate == 0 {
		o.forkRate = forkRateFirst
	}
	if !h.last.IsZero() {
		o.since = time.Since(h.last)
	}
	return o
}

// summary says in one line how the processes of a pod were kept.
func summary(procs []*captured) string {
	var most *captured
	n := map[Backing]int{}
	for _, c := range procs {
		n[c.choice.backing()]++
		if most == nil || c.copied > most.copied {
			most = c
		}
	}
	if most == nil {
		return ""
	}
	line := fmt.Sprintf("%s: %s", most.choice.backing(), most.choice.reason)
	if len(n) > 1 {
		line += fmt.Sprintf(" (%d forked, %d copied)", n[BackingFork], n[BackingCopy])
	}
	return line
}

func (c choice) backing() Backing {
	if c.fork {
		return BackingFork
	}
	return BackingCopy
}

// errAdvice says that a mapping's inheritance changed unnoticed; the next round
// knows of it.
var errAdvice = errors.New("madvise(2) changed what a fork inherits")
