// Package progtest builds C programs for tests and makes calls fail under them: the fixtures that engine,
// streams and commands are tried on.
package progtest

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Build compiles the C file source with -O1 -g -pthread and the given flags,
// which may include libraries, into a directory that goes with the test. It
// returns the path of the program. The test is skipped where there is no gcc,
// or no static C library for -static.
func Build(t testing.TB, source string, flags ...string) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("gcc is not installed: the program under test cannot be built")
	}
	out := filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(source), ".c"))
	args := append([]string{"-O1", "-g", "-pthread", "-o", out, source}, flags...)
	if b, err := exec.CommandContext(t.Context(), gcc, args...).CombinedOutput(); err != nil {
		if bytes.Contains(b, []byte("cannot find -lc")) {
			t.Skip("no static C library: the program under test cannot be built")
		}
		t.Fatalf("gcc: %v\n%s", err, b)
	}
	return out
}
