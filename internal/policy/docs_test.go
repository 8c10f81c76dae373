package policy

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestEveryCommandHasItsPage builds the commands and compares what their --help
// says with docs/commands: a page for each, and every option on it.
func TestEveryCommandHasItsPage(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	dir := t.TempDir()
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", dir, "./cmd/lam", "./cmd/lamd", "./cmd/mpirun")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	help := func(words ...string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, filepath.Join(dir, words[0]), append(words[1:], "--help")...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s --help: %v", strings.Join(words, " "), err)
		}
		return string(out)
	}
	pages := map[string]string{"mpirun": help("mpirun"), "lamd": ""}
	for _, word := range subcommands(help("lam")) {
		pages["lam-"+word] = help("lam", word)
		for _, sub := range subcommands(pages["lam-"+word]) {
			pages["lam-"+word] += help("lam", word, sub)
		}
	}
	if len(pages) < 15 {
		t.Fatalf("only %d commands found: has the form of --help changed?", len(pages))
	}
	for name, text := range pages {
		page, err := os.ReadFile(filepath.Join("../../docs/commands", name+".md"))
		if err != nil {
			t.Errorf("%s has no page: %v", strings.Replace(name, "-", " ", 1), err)
			continue
		}
		if name == "lam-run" {
			continue // its page refers to mpirun's
		}
		for _, o := range options(text) {
			if !regexp.MustCompile(`(^|[^-\w])` + regexp.QuoteMeta(o) + `\b`).Match(page) {
				t.Errorf("docs/commands/%s.md does not mention %s", name, o)
			}
		}
	}
}

// subcommands reads the list of commands of a help text.
func subcommands(help string) []string {
	_, list, ok := strings.Cut(help, "Available Commands:\n")
	if !ok {
		return nil
	}
	var out []string
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) == 0 {
			break
		}
		if f[0] != "help" {
			out = append(out, f[0])
		}
	}
	return out
}

// options lists the long options of a help text, and the short ones that stand
// first on their line, but those that all commands have.
func options(help string) []string {
	var out []string
	seen := map[string]bool{"--help": true, "-h": true, "-help": true, "-o": true}
	global := false
	for line := range strings.Lines(help) {
		if strings.HasPrefix(line, "Global Flags:") || strings.HasPrefix(line, "Available Commands:") {
			global = true
		} else if line != "" && line[0] != ' ' && line[0] != '\n' {
			global = false
		}
		text := strings.TrimSpace(line)
		if global || !strings.HasPrefix(line, "  ") || !strings.HasPrefix(text, "-") {
			continue
		}
		for _, w := range strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == ',' || r == '=' }) {
			if !strings.HasPrefix(w, "-") {
				break
			}
			if !seen[w] {
				seen[w] = true
				out = append(out, w)
			}
		}
	}
	return out
}
