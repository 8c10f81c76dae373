package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Launch compares starting a program that does nothing, in milliseconds.
type Launch struct {
	LamMS  Sample `json:"lam_ms"`
	LoopMS Sample `json:"hydra_ms"`
}

// RatioResult compares one kernel without checkpoints under lam and under
// mpiexec.hydra, in seconds as the kernel measures itself. Ratios are those of
// the runs of one round.
type RatioResult struct {
	Kernel  string `json:"kernel"`
	LamS    Sample `json:"lam_s"`
	PlainS  Sample `json:"plain_s"` // hydra between network namespaces, joined by a bridge
	LoopS   Sample `json:"loop_s"`  // hydra over loopback
	ToPlain Sample `json:"ratio_to_plain"`
	ToLoop  Sample `json:"ratio_to_loop"`
}

// NetPIPE compares half a round trip of messages of one size between two
// ranks, in microseconds, as RatioResult does.
type NetPIPE struct {
	Bytes   int    `json:"bytes"`
	LamUS   Sample `json:"lam_us"`
	PlainUS Sample `json:"plain_us"`
	LoopUS  Sample `json:"loop_us"`
	ToPlain Sample `json:"ratio_to_plain"`
	ToLoop  Sample `json:"ratio_to_loop"`
}

// launch measures starting `true`, in turns.
func (s *Suite) launch(ctx context.Context) error {
	var ours, theirs []float64
	for range s.Rounds * 2 {
		o, err := s.runLam(ctx, "off", "true")
		if err != nil {
			return err
		}
		h, err := s.runLoop(ctx, s.Ranks, nil, "true")
		if err != nil {
			return err
		}
		ours, theirs = append(ours, millis(o.Elapsed)), append(theirs, millis(h.Elapsed))
	}
	s.result.Launch = &Launch{LamMS: Summarize(ours), LoopMS: Summarize(theirs)}
	return nil
}

// ratio compares the kernels without checkpoints.
func (s *Suite) ratio(ctx context.Context) error {
	for _, kernel := range s.Kernels {
		var values [allWays][]float64
		err := s.inTurns(ctx, s.Rounds, s.Ranks, timed, func(w int, o Outcome) error {
			return appendSeconds(&values[w], o, nil)
		}, s.path(kernel))
		if err != nil {
			return err
		}
		each, to := samples(values)
		s.result.Ratio = append(s.result.Ratio, RatioResult{
			Kernel: kernel, LamS: each[byLam], PlainS: each[byPlain], LoopS: each[byLoop],
			ToPlain: to[byPlain], ToLoop: to[byLoop],
		})
	}
	return nil
}

// netpipeSizes are the messages that are reported, in bytes; netpipeTrips is
// how often each goes there and back, seven times over.
const (
	netpipeSizes = "8 65536 1048576"
	netpipeTrips = "300"
)

// netpipe compares round trips between two nodes.
func (s *Suite) netpipe(ctx context.Context) error {
	if s.Ranks < 2 {
		return errors.New("needs two cores")
	}
	program, err := lookPath("NPmpich2")
	if err != nil {
		return fmt.Errorf("%w; on Debian or Ubuntu: apt-get install -y netpipe-mpich2", err)
	}
	sizes := strings.Fields(netpipeSizes)
	values := map[int]*[allWays][]float64{}
	for _, size := range sizes {
		n, err := strconv.Atoi(size)
		if err != nil {
			return err
		}
		values[n] = new([allWays][]float64)
	}
	biggest := sizes[len(sizes)-1]
	last := func(line string) bool { return strings.Contains(line, " "+biggest+" bytes ") }
	take := func(w int, o Outcome) error {
		found := netpipeTimes(o.Stdout)
		for n, v := range values {
			us, ok := found[n]
			if !ok {
				return fmt.Errorf("no line for %d bytes in %q", n, o.Stdout)
			}
			v[w] = append(v[w], us)
		}
		return nil
	}
	err = s.inTurns(ctx, s.Rounds, 2, last, take,
		"sh", "-c", `exec "$0" "$@" 2>&1`, program, // its table goes to stderr
		"-l", "1", "-u", biggest, "-n", netpipeTrips, "-p", "0", "-o", filepath.Join(s.dir, "np.out"))
	if err != nil {
		return err
	}
	for n, v := range values {
		each, to := samples(*v)
		s.result.NetPIPE = append(s.result.NetPIPE, NetPIPE{
			Bytes: n, LamUS: each[byLam], PlainUS: each[byPlain], LoopUS: each[byLoop], ToPlain: to[byPlain], ToLoop: to[byLoop],
		})
	}
	slices.SortFunc(s.result.NetPIPE, func(a, b NetPIPE) int { return a.Bytes - b.Bytes })
	return nil
}

// netpipeTimes reads microseconds per size in bytes from lines like
// "  5:       8 bytes    300 times -->      8.82 Mbps in       6.92 usec".
func netpipeTimes(text string) map[int]float64 {
	out := map[int]float64{}
	for line := range strings.Lines(text) {
		var index, bytes, times int
		var mbps, us float64
		if n, _ := fmt.Sscanf(line, "%d: %d bytes %d times --> %f Mbps in %f usec", &index, &bytes, &times, &mbps, &us); n == 5 {
			out[bytes] = us
		}
	}
	return out
}

func appendSeconds(to *[]float64, o Outcome, err error) error {
	if err != nil {
		return err
	}
	v, ok := o.Seconds()
	if !ok {
		return fmt.Errorf("no line \"# time\" in %q", o.Stdout)
	}
	*to = append(*to, v)
	return nil
}
