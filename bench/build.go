package bench

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed nas/*.c nas/*.h mpi/*.c mpi/*.sh
var sources embed.FS

// Kernels are the NAS kernels of this package and Classes their sizes, small
// to large. A program is named KERNEL.CLASS: "cg.A".
const (
	Kernels = "ep cg is mg"
	Classes = "SWABC"
)

// Ballast is the name of the program with a chosen amount of memory and of
// change (bench/mpi/ballast.c).
const Ballast = "ballast"

// ErrNoCompiler says that mpicc is not installed. The text that it is wrapped
// in tells how to get it.
var ErrNoCompiler = errors.New("no MPI compiler")

// Build compiles programs ("ep.S", "cg.B", Ballast) into dir, which must
// exist, with the mpicc found in PATH. It returns nothing on success: the
// programs are dir/NAME. A program that is there already and newer than this
// build of lampause is made again all the same, the compiler takes a fraction
// of a second.
//
// Expected errors: ErrNoCompiler; an unknown program; what the compiler said.
func Build(ctx context.Context, dir string, programs ...string) error {
	src, err := os.MkdirTemp(dir, ".src-")
	if err != nil {
		return fmt.Errorf("bench: build: %w", err)
	}
	defer func() { _ = os.RemoveAll(src) }()
	if err := unpack(src); err != nil {
		return fmt.Errorf("bench: build: %w", err)
	}
	for _, name := range programs {
		if err := compile(ctx, src, dir, name); err != nil {
			return fmt.Errorf("bench: build %s: %w", name, err)
		}
	}
	return nil
}

// unpack writes the embedded sources to dir, flat.
func unpack(dir string) error {
	return fs.WalkDir(sources, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := sources.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, filepath.Base(path)), text, 0o600)
	})
}

// scripts writes the scripts of bench/mpi to dir, to be executed.
func scripts(dir string) error {
	for _, name := range []string{"plain.sh", "enter.sh"} {
		text, err := sources.ReadFile("mpi/" + name)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o700)
		}
		if err != nil {
			return fmt.Errorf("bench: %w", err)
		}
	}
	return nil
}

func compile(ctx context.Context, src, dir, name string) error {
	mpicc, err := exec.LookPath("mpicc")
	if err != nil {
		return fmt.Errorf("%w: mpicc is not in PATH; on Debian or Ubuntu: %s", ErrNoCompiler, InstallCommand)
	}
	args := []string{"-O3", "-std=gnu11", "-o", filepath.Join(dir, name)}
	if name == Ballast {
		args = append(args, "ballast.c")
	} else {
		kernel, class, ok := strings.Cut(name, ".")
		if !ok || len(class) != 1 || !strings.Contains(Classes, class) || !hasWord(Kernels, kernel) {
			return fmt.Errorf("not a program: kernels are %s, classes %s, as in cg.A; or %s", Kernels, Classes, Ballast)
		}
		args = append(args, "-DCLASS='"+class+"'", kernel+".c", "nas.c", "-lm")
	}
	cmd := exec.CommandContext(ctx, mpicc, args...)
	cmd.Dir = src
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", mpicc, err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

func hasWord(list, word string) bool {
	for _, w := range strings.Fields(list) {
		if w == word {
			return true
		}
	}
	return false
}

// InstallCommand installs what Build needs on Debian and Ubuntu.
const InstallCommand = "apt-get install -y --no-install-recommends gcc libc6-dev mpich libmpich-dev"

// Digits returns the lines of a program's output that do not depend on the
// clock: all but those that start with "#". Two runs on the same number of
// ranks must agree in them byte for byte.
func Digits(output string) string {
	var b strings.Builder
	for line := range strings.Lines(output) {
		if !strings.HasPrefix(line, "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}
