// Package doctor finds out what this machine offers: it tries what the local
// cluster, the pods and the checkpoint engine need, and names the cure for
// what is missing.
//
// Kernel features are tried, not guessed from versions, in the very nesting in
// which they are used later. Run starts the program anew as stage "cluster" in
// the namespaces of a local cluster's holder (U), which starts stage
// "supervisor" in those of a pod supervisor (S), which starts stage "pod" in
// those of a pod (R). Each stage prints its results as JSON lines. Nothing is
// left behind: all of it lives in the namespaces and ends with them.
package doctor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// Status of a Result.
type Status string

// The statuses: there; there with a drawback, or missing without which only
// something optional fails; missing.
const (
	OK      Status = "OK"
	Warn    Status = "warn"
	Missing Status = "missing"
)

// Result is the outcome of one check.
type Result struct {
	Check  string `json:"check"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	Cure   string `json:"cure,omitempty"` // what to do, unless Status is OK
}

// limit bounds all stages together.
const limit = 30 * time.Second

// Config says where to look.
type Config struct {
	// Stage starts this program again so that it calls Stage with the name:
	// the program's path and its arguments.
	Stage func(name string) []string

	Runtime, State string // directories that a cluster would use
	Look           func(program string) (path string, err error)
}

// Run makes all checks. It takes a second or two.
func Run(ctx context.Context, c Config) []Result {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	all := []Result{kernelVersion()}
	all = append(all, c.stages(ctx)...)
	all = append(all, engine(ctx)...)
	all = append(all, c.programs(ctx)...)
	all = append(all, limits()...)
	all = append(all, c.room()...)
	return all
}

// Healthy reports whether nothing is missing.
func Healthy(all []Result) bool {
	for _, r := range all {
		if r.Status == Missing {
			return false
		}
	}
	return true
}

// result makes a Result of an attempt: OK with detail, or status with the
// error and the cure.
func result(check string, err error, detail string, status Status, cure string) Result {
	if err == nil {
		return Result{Check: check, Status: OK, Detail: detail}
	}
	return Result{Check: check, Status: status, Detail: err.Error(), Cure: cure}
}

// parse reads the lines of a stage. Lines that are no results are ignored.
func parse(out []byte) []Result {
	var all []Result
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		var r Result
		if json.Unmarshal(lines.Bytes(), &r) == nil && r.Check != "" {
			all = append(all, r)
		}
	}
	return all
}

func count(n uint64, unit string) string { return fmt.Sprintf("%d %s", n, unit) }
