package bench

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// needMPI skips a test on a machine without MPICH.
func needMPI(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"mpicc", "mpiexec.hydra"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: %s", tool, InstallCommand)
		}
	}
}

func TestKernelsVerifyUnderHydra(t *testing.T) {
	needMPI(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	dir := t.TempDir()
	programs := []string{"ep.S", "cg.S", "is.S", "mg.S", "cg.W", "mg.W", "is.W"}
	if err := Build(ctx, dir, programs...); err != nil {
		t.Fatal(err)
	}
	for _, name := range programs {
		for _, ranks := range []string{"1", "2", "4"} {
			t.Run(name+"/"+ranks, func(t *testing.T) {
				first := hydra(ctx, t, ranks, filepath.Join(dir, name))
				if !strings.Contains(first, "VERIFICATION SUCCESSFUL") {
					t.Fatalf("no verification in\n%s", first)
				}
				if strings.HasSuffix(name, "W") {
					return
				}
				if second := hydra(ctx, t, ranks, filepath.Join(dir, name)); Digits(first) != Digits(second) {
					t.Errorf("digits differ:\n%s\n%s", first, second)
				}
			})
		}
	}
}

func hydra(ctx context.Context, t *testing.T, ranks, program string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(ctx, "mpiexec.hydra", append([]string{"-n", ranks, program}, args...)...).Output()
	if err != nil {
		t.Fatalf("%s on %s ranks: %v\n%s", program, ranks, err, out)
	}
	return string(out)
}

func TestBallastIsDeterministic(t *testing.T) {
	needMPI(t)
	dir := t.TempDir()
	if err := Build(t.Context(), dir, Ballast); err != nil {
		t.Fatal(err)
	}
	a := hydra(t.Context(), t, "2", filepath.Join(dir, Ballast), "4", "64", "50", "10")
	b := hydra(t.Context(), t, "2", filepath.Join(dir, Ballast), "4", "64", "50", "10")
	if Digits(a) != Digits(b) || !strings.Contains(a, "digest ") {
		t.Errorf("not the same digest twice:\n%s\n%s", a, b)
	}
}

func TestBuildRefuses(t *testing.T) {
	for _, name := range []string{"cg", "cg.Z", "lu.A", "cg.AB", "../x"} {
		if err := Build(t.Context(), t.TempDir(), name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %v, want a refusal that names it", name, err)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if err := Build(t.Context(), t.TempDir(), "cg.S"); !errors.Is(err, ErrNoCompiler) {
		t.Errorf("without mpicc: %v, want ErrNoCompiler", err)
	}
}

func TestDigits(t *testing.T) {
	if got := Digits("a\n# time 3\nb\n#x"); got != "a\nb\n" {
		t.Errorf("got %q", got)
	}
}
