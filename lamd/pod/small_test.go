package pod

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

func TestPickPIDs(t *testing.T) {
	local := []job.Rank{3, 7}
	got := pickPIDs(local, 8, 32768)
	if got[3] != pidBase+3*pidSpace || got[7] != pidBase+7*pidSpace {
		t.Errorf("small job: %v", got)
	}
	for _, c := range []struct{ ranks, size, pidMax int }{{2, 1000, 32768}, {64, 1000, 32768}, {200, 100_000, 32768}, {64, 64, 4 << 20}} {
		var local []job.Rank
		for r := range c.ranks {
			local = append(local, job.Rank(r+c.size-c.ranks))
		}
		seen := map[int]bool{}
		for r, pid := range pickPIDs(local, c.size, c.pidMax) {
			if pid < pidBase || pid >= c.pidMax || seen[pid] {
				t.Errorf("%+v: rank %d has number %d", c, r, pid)
			}
			seen[pid] = true
		}
	}
}

func TestRankEnv(t *testing.T) {
	spec := &job.Spec{Ranks: 4, Env: []string{"HOME=/h", "PMI_RANK=9", "PMIX_X=1", "UCX_TLS=all", "TMPDIR=/t", "junk", "A=b=c", "SLURM_PMI_FD=1"}}
	got := strings.Join(rankEnv(spec, 2, podTmp), " ")
	for _, want := range []string{"HOME=/h", "A=b=c", "PMI_FD=3", "PMI_RANK=2", "PMI_SIZE=4", "UCX_TLS=tcp,self", "TMPDIR=" + podTmp} {
		if strings.Count(got, want) != 1 {
			t.Errorf("%s is not there once: %s", want, got)
		}
	}
	for _, not := range []string{"PMI_RANK=9", "PMIX", "UCX_TLS=all", "junk", "SLURM", "TMPDIR=/t "} {
		if strings.Contains(got, not) {
			t.Errorf("%s: %s", not, got)
		}
	}
}

func TestOutsideID(t *testing.T) {
	file := filepath.Join(t.TempDir(), "map")
	if err := os.WriteFile(file, []byte("         0       1500          1\n      1000     100000      65536\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[int]int{0: 1500, 1000: 100000, 1234: 100234, 5: 5} {
		if got, err := outside(file, in); got != want || err != nil {
			t.Errorf("%d is %d (%v), want %d", in, got, err, want)
		}
	}
}

// Lines of /proc/net/tcp: a listener, an idle connection, one with unread
// bytes, one being closed.
const procTCP = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0A08090A:8AE7 00000000:0000 0A 00000000:00000001 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0
   1: 0A08090A:8AE7 0B08090A:9000 01 00000000:00000000 00:00000000 00000000     0        0 12 1 0 20 4 0 10 -1
   2: 0A08090A:8AE8 0B08090A:9001 01 00000000:00000019 00:00000000 00000000     0        0 13 1 0 20 4 0 10 -1
   3: 0A08090A:8AE9 0B08090A:9002 04 00000001:00000000 01:00000014 00000000     0        0 0 1 0 20 4 0 10 -1
`

func TestProcNetTCP(t *testing.T) {
	unread, err := unreadSockets(strings.NewReader(procTCP))
	if err != nil || len(unread) != 1 || !unread["13"] {
		t.Errorf("unread %v %v", unread, err)
	}
	if n := closingSockets(strings.NewReader(procTCP)); n != 1 {
		t.Errorf("%d closing", n)
	}
}

func TestShieldDecision(t *testing.T) {
	for _, c := range []struct {
		v    shieldView
		want shieldState
	}{
		{shieldView{inMPI: true}, shieldState{}}, // nothing to go back to
		{shieldView{protected: true}, shieldState{}},
		{shieldView{protected: true, inMPI: true}, shieldState{rst: true, fin: true}},
		{shieldView{protected: true, inMPI: true, closing: 1}, shieldState{rst: true}},
		{shieldView{protected: true, inMPI: true, died: true, closing: 9}, shieldState{rst: true, fin: true}},
		{shieldView{protected: true, died: true}, shieldState{rst: true, fin: true}},
	} {
		if got := shieldFor(c.v); got != c.want {
			t.Errorf("%+v: %+v, want %+v", c.v, got, c.want)
		}
	}
}

func TestSideRoundTrip(t *testing.T) {
	x := &side{Version: sideVersion, Epoch: 3, PMI: []byte(`{}`), Outputs: []outputState{{Rank: 1, FD: 2, Offset: 7, Tail: []byte("abc")}}, Stdin: &stdinState{Consumed: 5}}
	b, err := x.encode()
	if err != nil {
		t.Fatal(err)
	}
	y, err := decodeSide(b)
	if err != nil || y.at()[streamKey{1, 2}] != 7 || len(y.counts()) != 2 {
		t.Errorf("%+v %v", y, err)
	}
	if _, err := decodeSide([]byte(`{"version":2}`)); err == nil {
		t.Error("another version was accepted")
	}
}

func TestParsePlace(t *testing.T) {
	k, off, err := parsePlace("12.2:345")
	if k != (streamKey{12, 2}) || off != 345 || err != nil {
		t.Errorf("%v %d %v", k, off, err)
	}
	for _, bad := range []string{"", "1", "1.x:0", "1.1:-5", "a.1:0"} {
		if _, _, err := parsePlace(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func FuzzRequests(f *testing.F) {
	f.Add("1.1:5", "   2: 0A08090A:8AE8 0B08090A:9001 01 00000000:00000019 00:0 0 0 0 13", `{"version":1}`)
	f.Fuzz(func(t *testing.T, place, tcp, blob string) {
		_, _, _ = parsePlace(place)
		_, _ = unreadSockets(strings.NewReader(tcp))
		closingSockets(strings.NewReader(tcp))
		_, _ = decodeSide([]byte(blob))
		_, _ = nftAnswers([]byte(tcp))
	})
}

// Status words are the protocol's.
func TestStageNames(t *testing.T) {
	for s, want := range map[stage]string{stRunning: "running", stFrozen: "frozen", stPending: "running", stStopped: "stopped", stEmpty: "building"} {
		if s.String() != want {
			t.Errorf("%d is %s", s, s)
		}
	}
	if podapi.Version != 1 {
		t.Error("the protocol changed: check the supervisor's answers")
	}
}
