package job

import (
	"strings"
	"testing"
)

func TestParseID(t *testing.T) {
	for _, c := range []struct {
		in   string
		want ID
		ok   bool
	}{
		{"1", 1, true},
		{"42", 42, true},
		{"18446744073709551615", 1<<64 - 1, true},
		{"0", 0, false},
		{"", 0, false},
		{"-1", 0, false},
		{"1x", 0, false},
		{"../1", 0, false},
		{"18446744073709551616", 0, false},
	} {
		got, err := ParseID(c.in)
		if (err == nil) != c.ok || got != c.want {
			t.Errorf("ParseID(%q) = %d, %v", c.in, got, err)
		}
		if c.ok && got.String() != c.in {
			t.Errorf("%d prints as %q, want %q", got, got.String(), c.in)
		}
	}
}

func TestValidNode(t *testing.T) {
	for id, want := range map[NodeID]bool{
		"n1": true, "host-3.rack_2": true, "N": true,
		"": false, ".": false, "..": false, "-n": false, "a/b": false, "a b": false, "ä": false,
		NodeID(strings.Repeat("x", MaxNameLen)):   true,
		NodeID(strings.Repeat("x", MaxNameLen+1)): false,
	} {
		if got := ValidNode(id); got != want {
			t.Errorf("ValidNode(%q) = %v", id, got)
		}
	}
}

func TestExitStatus(t *testing.T) {
	for _, c := range []struct {
		exit Exit
		want int
	}{{Exit{}, 0}, {Exit{Code: 7}, 7}, {Exit{Signal: 9}, 137}, {Exit{Signal: 11, Core: true}, 139}} {
		if got := c.exit.Status(); got != c.want {
			t.Errorf("%+v: status %d, want %d", c.exit, got, c.want)
		}
	}
}

func TestStates(t *testing.T) {
	for s, final := range map[State]bool{Starting: false, Running: false, Checkpointing: false, Recovering: false, Suspended: false, Done: true, Failed: true} {
		if s.Final() != final {
			t.Errorf("%s: final is %v", s, s.Final())
		}
	}
}

func validSpec() Spec {
	return Spec{
		Argv: []string{"/bin/true"}, Dir: "/", Ranks: 2, MapBy: MapByBlock, OnFailure: OnFailurePause,
		NoSpare: NoSpareWait, Replicas: 2, Files: "truncate", Output: OutputLive,
	}
}

// TestProgram: ranks belong to programs in their order.
func TestProgram(t *testing.T) {
	s := validSpec()
	s.Ranks = 6
	s.More = []Program{{Ranks: 1, Argv: []string{"/bin/one"}, Dir: "/"}, {Ranks: 3, Argv: []string{"/bin/three"}, Dir: "/"}}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	want := []string{"/bin/true", "/bin/true", "/bin/one", "/bin/three", "/bin/three", "/bin/three"}
	for r, argv0 := range want {
		p, n := s.Program(Rank(r))
		if p.Argv[0] != argv0 || n != map[string]int{"/bin/true": 0, "/bin/one": 1, "/bin/three": 2}[argv0] {
			t.Errorf("rank %d: program %d, %+v", r, n, p)
		}
	}
	if p, _ := s.Program(0); p.Ranks != 2 {
		t.Errorf("the first program has %d ranks", p.Ranks)
	}
}

// Every field that Validate looks at is named when it is wrong.
func TestValidateNamesTheField(t *testing.T) {
	good := validSpec()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Spec){
		"no program":        func(s *Spec) { s.Argv = nil },
		"absolute path":     func(s *Spec) { s.Argv = []string{"true"} },
		"working directory": func(s *Spec) { s.Dir = "tmp" },
		"number of ranks":   func(s *Spec) { s.Ranks = 0 },
		"ranks 65537":       func(s *Spec) { s.Ranks = MaxRanks + 1 },
		"ranks per node":    func(s *Spec) { s.PPN = -1 },
		"number of ranks 0": func(s *Spec) { s.More = []Program{{Ranks: 2, Argv: s.Argv, Dir: "/"}} },
		"program \"more\"":  func(s *Spec) { s.More = []Program{{Ranks: 1, Argv: []string{"more"}, Dir: "/"}} },
		"replicas":          func(s *Spec) { s.Replicas = 0 },
		"interval":          func(s *Spec) { s.CkptInterval = -1 },
		"standard input":    func(s *Spec) { s.StdinRank = 2 },
		"crash retries":     func(s *Spec) { s.CrashRetries = -1 },
		"map-by":            func(s *Spec) { s.MapBy = "socket" },
		"on-failure":        func(s *Spec) { s.OnFailure = "" },
		"no-spare":          func(s *Spec) { s.NoSpare = "panic" },
		"output":            func(s *Spec) { s.Output = "never" },
		"files":             func(s *Spec) { s.Files = "eat" },
	} {
		s := validSpec()
		spoil(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
