package lamd

import (
	"errors"
	"flag"
	"io"
	"strings"
	"testing"

	"github.com/lampause/lampause/job"
)

var goodArgs = []string{
	"--node", "n1", "--addr", "10.77.0.11", "--peers", "n1=10.77.0.11,n2=10.77.0.12",
	"--runtime-dir", "/run/n1", "--state-dir", "/state/n1",
}

func TestParseArgs(t *testing.T) {
	cfg, err := parseArgs(append([]string{"--spare", "--slots", "3", "--boot", "4", "--session", "9"}, goodArgs...), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Node != "n1" || cfg.Addr.String() != "10.77.0.11" || len(cfg.Peers) != 2 || !cfg.Spare ||
		cfg.Slots != 3 || cfg.Boot != 4 || cfg.Session != 9 || cfg.RuntimeDir != "/run/n1" || cfg.StateDir != "/state/n1" {
		t.Errorf("%+v", cfg)
	}
	if _, err := parseArgs([]string{"-h"}, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("help: %v", err)
	}
}

func TestParseArgsRefuses(t *testing.T) {
	for _, c := range []struct {
		more []string
		say  string
	}{
		{[]string{"--node", ""}, "node name"},
		{[]string{"--node", "a/b"}, "node name"},
		{[]string{"--node", "n3"}, "own peers"},
		{[]string{"--addr", "here"}, "--addr"},
		{[]string{"--peers", "n1"}, "--peers"},
		{[]string{"--runtime-dir", "run"}, "runtime directory"},
		{[]string{"--state-dir", ""}, "state directory"},
		{[]string{"--boot", "0"}, "boot 0"},
		{[]string{"--slots", "-1"}, "slots -1"},
		{[]string{"--slots", "many"}, "slots"},
		{[]string{"--none"}, "none"},
		{[]string{"now"}, `"now"`},
	} {
		_, err := parseArgs(append(append([]string{}, goodArgs...), c.more...), io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%q: %v", c.more, err)
		}
	}
}

func TestParsePeers(t *testing.T) {
	for _, s := range []string{
		"", ",", "n1", "n1=", "=10.0.0.1", "n1=10.0.0.1,", "n1=10.0.0.1/8", "../x=10.0.0.1", "n1==10.0.0.1",
		"n1=10.0.0.1,n1=10.0.0.2", "n1=10.0.0.1,n2=10.0.0.1",
	} {
		if got, err := parsePeers(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
	got, err := parsePeers("n1=10.0.0.1,n2=fd00::2")
	if err != nil || len(got) != 2 || got[1].Node != "n2" || got[1].Addr.String() != "fd00::2" {
		t.Errorf("%v, %v", got, err)
	}
}

func FuzzParsePeers(f *testing.F) {
	for _, s := range []string{"n1=10.0.0.1", "n1=10.0.0.1,n2=fd00::2", "n1=::1%eth0", "=,=", "n1=10.0.0.1,n1=10.0.0.1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parsePeers(s)
		if err != nil {
			return
		}
		if len(got) != strings.Count(s, ",")+1 {
			t.Errorf("%d nodes", len(got))
		}
		seen := map[job.NodeID]bool{}
		for _, p := range got {
			if !job.ValidNode(p.Node) || !p.Addr.IsValid() || seen[p.Node] {
				t.Errorf("%+v", p)
			}
			seen[p.Node] = true
		}
	})
}
