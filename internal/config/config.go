// Package config is where settings come from: options first, then environment
// variables, then the file of the user, then that of the machine, and what is
// built in last. Options and defaults are the commands' own; this package is
// the three in between.
//
// A key of a file is the name of its variable without LAM_ and in small
// letters: spares = 1 is LAM_SPARES=1. So every setting has one name and one
// meaning, wherever it stands. Files are TOML with such keys only; one that is
// broken is an error and not ignored, because what it asks for may matter.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/lampause/lampause/internal/nearest"
)

// SystemFile is the file of the machine.
const SystemFile = "/etc/lam/lamd.toml"

// prefix is what variables begin with.
const prefix = "LAM_"

// Keys lists what files may say, in the order of their names.
func Keys() []string {
	return []string{
		"backing", "ckpt_interval", "crash_retries", "files", "lamd", "no_spare", "on_failure", "output", "replicas",
		"runtime_dir", "spares", "state_dir",
	}
}

// Settings is what the environment and the files say. It is read only after
// Load. A nil *Settings says nothing.
type Settings struct {
	getenv func(string) string
	values map[string]value // by variable
}

type value struct{ text, source string }

// UserFile returns the path of the user's file: $XDG_CONFIG_HOME/lam/config.toml,
// else ~/.config/lam/config.toml; "" when neither is known.
func UserFile(getenv func(string) string) string {
	dir := getenv("XDG_CONFIG_HOME")
	if dir == "" && getenv("HOME") != "" {
		dir = filepath.Join(getenv("HOME"), ".config")
	}
	if !filepath.IsAbs(dir) { // relative ones are invalid (XDG Base Directory Specification)
		return ""
	}
	return filepath.Join(dir, "lam", "config.toml")
}

// Load reads the files of this machine and of the user of getenv.
//
// Expected errors: those of LoadFiles.
func Load(getenv func(string) string) (*Settings, error) {
	return LoadFiles(getenv, SystemFile, UserFile(getenv))
}

// LoadFiles reads the given files, of which later ones count more; those that
// are not there, or named "", say nothing.
//
// Expected errors: a file that cannot be read, that everybody may write to, is no TOML, has an unknown key
// or a value that is no word or number; they name the file, and where they can
// the line and the nearest key.
func LoadFiles(getenv func(string) string, files ...string) (*Settings, error) {
	s := &Settings{getenv: getenv, values: map[string]value{}}
	for _, f := range files {
		if f == "" {
			continue
		}
		b, err := read(f)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) && f == SystemFile {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("configuration: %w", err)
		}
		if err := s.add(f, b); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// read returns what is in a file that not everybody may write to: it names
// programs that are run.
func read(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().IsRegular() && st.Mode().Perm()&0o002 != 0 {
		return nil, fmt.Errorf("%s: every user may write to it; chmod o-w it, or remove it", name)
	}
	return io.ReadAll(f)
}

// add takes what a file says.
func (s *Settings) add(file string, b []byte) error {
	said := map[string]any{}
	if err := toml.Unmarshal(b, &said); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, _ := at.Position()
			return fmt.Errorf("%s:%d: %s", file, line, strings.TrimPrefix(at.Error(), "toml: "))
		}
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, key := range slices.Sorted(maps.Keys(said)) {
		source := file
		if line := lineOf(b, key); line > 0 {
			source += ":" + strconv.Itoa(line)
		}
		if !slices.Contains(Keys(), key) {
			hint := "known are " + strings.Join(Keys(), ", ")
			if near := nearest.Word(key, Keys()); near != "" {
				hint = "did you mean " + near + "?"
			}
			return fmt.Errorf("%s: unknown key %q; %s", source, key, hint)
		}
		text, ok := word(said[key])
		if !ok {
			return fmt.Errorf("%s: %s: want a word or a number", source, key)
		}
		s.values[prefix+strings.ToUpper(key)] = value{text, source}
	}
	return nil
}

func word(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case int64:
		return strconv.FormatInt(v, 10), true
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64), true
	}
	return "", false
}

// lineOf returns the line, from 1, at which a key or a table of that name
// stands, 0 when it is written in a way that is not looked for.
func lineOf(b []byte, key string) int {
	stands := regexp.MustCompile(`^\s*\[*\s*["']?` + regexp.QuoteMeta(key) + `["']?\s*[=.\]]`)
	for i, line := range bytes.Split(b, []byte("\n")) {
		if stands.Match(line) {
			return i + 1
		}
	}
	return 0
}

// Get returns the value of a variable, as os.Getenv does: that of the
// environment, else that of the files, else "".
func (s *Settings) Get(key string) string {
	if s == nil {
		return ""
	}
	if v := s.getenv(key); v != "" {
		return v
	}
	return s.values[key].text
}

// Source says where Get took a variable from, for messages.
func (s *Settings) Source(key string) string {
	if v, ok := s.values[key]; ok && s.getenv(key) == "" {
		return v.source + ": " + strings.ToLower(strings.TrimPrefix(key, prefix))
	}
	return "environment variable " + key
}
