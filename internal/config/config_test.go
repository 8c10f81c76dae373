package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func env(kv map[string]string) func(string) string {
	return func(key string) string { return kv[key] }
}

// TestPrecedence: environment before the user's file before the machine's.
func TestPrecedence(t *testing.T) {
	system := file(t, "spares = 1\nreplicas = 3\nckpt_interval = \"10s\"\n")
	user := file(t, "# mine\nreplicas = 4\nckpt_interval = '20s'\n")
	s, err := LoadFiles(env(map[string]string{"LAM_CKPT_INTERVAL": "30s", "HOME": "/h"}), system, "", filepath.Join(t.TempDir(), "absent"), user)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ key, want, source string }{
		{"LAM_SPARES", "1", system + ":1: spares"},
		{"LAM_REPLICAS", "4", user + ":2: replicas"},
		{"LAM_CKPT_INTERVAL", "30s", "environment variable LAM_CKPT_INTERVAL"},
		{"LAM_OUTPUT", "", "environment variable LAM_OUTPUT"},
		{"HOME", "/h", "environment variable HOME"},
	} {
		if got := s.Get(c.key); got != c.want {
			t.Errorf("%s is %q, want %q", c.key, got, c.want)
		}
		if got := s.Source(c.key); got != c.source {
			t.Errorf("%s comes from %q, want %q", c.key, got, c.source)
		}
	}
}

// TestAnybodysFile: what everybody may write to is refused, not ignored.
func TestAnybodysFile(t *testing.T) {
	name := file(t, "spares = 1\n")
	for mode, want := range map[os.FileMode]bool{0o644: true, 0o664: true, 0o646: false, 0o602: false} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
		_, err := LoadFiles(env(nil), name)
		if (err == nil) != want || err != nil && !strings.Contains(err.Error(), name+": every user may write to it") {
			t.Errorf("%o: %v", mode, err)
		}
	}
}

func TestBrokenFiles(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{"spares = 1\n\nreplica = 2\n", []string{":3: ", `unknown key "replica"`, "did you mean replicas?"}},
		{"zzz = 2\n", []string{":1: ", "known are backing, ckpt_interval, "}},
		{"spares = \n", []string{":1: "}},
		{"spares = 1\nspares = 2\n", []string{":2: "}},
		{"spares = [1, 2]\n", []string{":1: ", "spares: want a word or a number"}},
		{"\n[mpirun]\nspares = 1\n", []string{":2: ", `unknown key "mpirun"`}},
		{"on-failure = 'abort'\n", []string{":1: ", "did you mean on_failure?"}},
	} {
		name := file(t, c.text)
		_, err := LoadFiles(env(nil), name)
		if err == nil {
			t.Errorf("%q was taken", c.text)
			continue
		}
		for _, w := range append(c.want, name) {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: %q does not say %q", c.text, err, w)
			}
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: more than a line: %q", c.text, err)
		}
	}
	if _, err := LoadFiles(env(nil), t.TempDir()); err == nil {
		t.Error("a directory was taken for a file")
	}
}

func TestUserFile(t *testing.T) {
	for _, c := range []struct{ xdg, home, want string }{
		{"/x", "/h", "/x/lam/config.toml"},
		{"", "/h", "/h/.config/lam/config.toml"},
		{"", "", ""},
		{"relative", "/h", ""},
	} {
		if got := UserFile(env(map[string]string{"XDG_CONFIG_HOME": c.xdg, "HOME": c.home})); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func FuzzFile(f *testing.F) {
	f.Add("spares = 1\n")
	f.Add("[a.b]\nc = 1979-05-27\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := &Settings{getenv: env(nil), values: map[string]value{}}
		if err := s.add("f", []byte(text)); err != nil && !strings.HasPrefix(err.Error(), "f:") {
			t.Errorf("%q: %v", text, err)
		}
	})
}
