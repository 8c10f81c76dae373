package paths

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/job"
)

func env(uid int, kv ...string) Env {
	m := map[string]string{}
	for i := 0; i+1 < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return Env{Get: func(k string) string { return m[k] }, UID: uid, Temp: "/tmp"}
}

func TestResolve(t *testing.T) {
	for _, tc := range []struct {
		name string
		env  Env
		want Dirs
		err  string
	}{
		{name: "root", env: env(0), want: Dirs{"/run/lam", "/var/lib/lam"}},
		{name: "user", env: env(1500, "HOME", "/home/u"), want: Dirs{"/tmp/lam-1500", "/home/u/.local/state/lam"}},
		{name: "user without a home", env: env(1500), want: Dirs{"/tmp/lam-1500", "/tmp/lam-1500/state"}},
		{
			name: "xdg", env: env(1500, "XDG_RUNTIME_DIR", "/run/user/1500", "XDG_STATE_HOME", "/s", "HOME", "/home/u"),
			want: Dirs{"/run/user/1500/lam", "/s/lam"},
		},
		{
			name: "explicit wins and is cleaned", env: env(0, "XDG_RUNTIME_DIR", "/x", "LAM_RUNTIME_DIR", "/a//b/", "LAM_STATE_DIR", "/c/./d"),
			want: Dirs{"/a/b", "/c/d"},
		},
		{name: "relative runtime", env: env(0, "LAM_RUNTIME_DIR", "run"), err: "LAM_RUNTIME_DIR"},
		{name: "relative state", env: env(0, "LAM_STATE_DIR", "st"), err: "LAM_STATE_DIR"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Resolve(tc.env)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want one naming %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestLocalStateIsPerRuntimeDir(t *testing.T) {
	a := Dirs{Runtime: "/run/a", State: "/s"}.Local(env(0))
	b := Dirs{Runtime: "/run/b", State: "/s"}.Local(env(0))
	if a.State == b.State || filepath.Dir(a.State) != "/s" {
		t.Errorf("state directories %s and %s", a.State, b.State)
	}
	if c := (Dirs{Runtime: "/run/a", State: "/s"}).Local(env(0, "LAM_STATE_DIR", "/s")); c.State != "/s" {
		t.Errorf("explicit state directory became %s", c.State)
	}
}

func TestCheckSockets(t *testing.T) {
	short := Dirs{Runtime: "/run/lam"}
	if err := short.CheckSockets("n1", "n10"); err != nil {
		t.Error(err)
	}
	long := Dirs{Runtime: "/" + strings.Repeat("x", 90)}
	err := long.CheckSockets("n1")
	if err == nil || !strings.Contains(err.Error(), "LAM_RUNTIME_DIR") {
		t.Fatalf("error %v", err)
	}
	// The advice must be right: the length it names fits, one more does not.
	fits := Dirs{Runtime: "/" + strings.Repeat("x", MaxSocketPath-len("/n1/pods/99999999/pod.sock")-1)}
	if err := fits.CheckSockets("n1"); err != nil {
		t.Error(err)
	}
	fits.Runtime += "x"
	if err := fits.CheckSockets("n1"); err == nil {
		t.Error("one byte more was accepted")
	}
}

func TestNodes(t *testing.T) {
	d := Dirs{Runtime: t.TempDir()}
	for _, n := range []job.NodeID{"n2", "n1"} {
		if err := os.MkdirAll(d.Node(n), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.NodeSocket(n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]job.NodeID{"n1", "n2"}, d.Nodes()); diff != "" {
		t.Error(diff)
	}
}

func TestEnsurePrivate(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "a", "b")
	for range 2 { // the second call finds it
		if err := EnsurePrivate(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := EnsurePrivate(dir); err == nil || !strings.Contains(err.Error(), "writable by others") {
		t.Errorf("error %v", err)
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if err := EnsurePrivate(link); err == nil {
		t.Error("a symbolic link was accepted")
	}
}
