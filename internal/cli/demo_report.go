package cli

import (
	"fmt"
	"strings"

	"github.com/lampause/lampause/internal/control"
)

// storyLine words an event for the demonstration; "" leaves it out.
func storyLine(e control.Event) string {
	ms := func(key string) float64 {
		v, _ := e.Data[key].(float64) // 0 when absent
		return v
	}
	text := func(key string) string {
		if e.Data[key] == nil {
			return "-"
		}
		return valueText(e.Data[key])
	}
	words := func(key string) string {
		v, _ := e.Data[key].(string) // "" when absent
		return v
	}
	switch e.Event {
	case "job.running":
		return fmt.Sprintf("job %v runs", e.Job)
	case "checkpoint.committed":
		return fmt.Sprintf("epoch %d is safe on %s nodes: %s, ranks stood still for %.1f ms", e.Epoch, text("replicas"), sizeText(int64(ms("bytes"))), ms("stall_ms"))
	case "checkpoint.abandoned":
		return "a checkpoint was given up, without harm: " + words("reason")
	case "node.dead":
		return fmt.Sprintf("node %s is dead: noticed after %.0f ms", e.Node, ms("detect_ms"))
	case "recovery.begun":
		return fmt.Sprintf("recovery to epoch %d: restart of %s (%s), rollback in place of all others", e.Epoch, words("lost"), words("to"))
	case "recovery.waiting":
		return "recovery waits for a spare"
	case "recovery.done":
		return fmt.Sprintf("recovered in %.0f ms: stop %.0f, roll back %.0f, restart %.0f, rewire %.0f, refill %.0f ms (before that: detect %.0f, agree %.0f, fence %.0f)",
			ms("total_ms"), ms("stop_ms"), ms("rollback_ms"), ms("restore_ms"), ms("rewire_ms"), ms("refill_ms"), ms("detect_ms"), ms("agree_ms"), ms("fence_ms"))
	case "replica.made":
		return fmt.Sprintf("the image of pod %s at epoch %d is on %s again", text("pod"), e.Epoch, e.Node)
	}
	return ""
}

// report prints the result.
func (d *demo) report() error {
	r := &d.result
	if d.app.Format == formatJSON {
		return d.app.emitJSON(r)
	}
	verdict := "EQUAL in every digit"
	if !r.Equal {
		verdict = "DIFFERENT"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s on %d ranks\n", r.Kernel, r.Ranks)
	fmt.Fprintf(&b, "  undisturbed                     %7.1f s\n", r.Undisturbed)
	fmt.Fprintf(&b, "  %d epochs, node %-4s lost         %7.1f s   digits: %s\n", r.Epochs, r.Lost, r.Disturbed, verdict)
	fmt.Fprintf(&b, "  %s\n\n", lastDigits(r.Digits))
	fmt.Fprintf(&b, "What it costs to go on after the node is known to be dead\n")
	fmt.Fprintf(&b, "  job pause                       %7.0f ms\n", r.PauseMS)
	fmt.Fprintf(&b, "  restart of the whole job        %7.0f ms  (%.2f)\n", r.RestartMS, ratio(r.PauseMS, r.RestartMS))
	fmt.Fprintf(&b, "  the same, runtime booted anew   %7.0f ms  (%.2f)\n", r.RestartRebootMS, ratio(r.PauseMS, r.RestartRebootMS))
	if err := d.app.say("%s", strings.TrimSuffix(b.String(), "\n")); err != nil {
		return err
	}
	return nil
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// lastDigits picks the line with the kernel's result: the one before the
// verdict.
func lastDigits(digits string) string {
	before := ""
	for line := range strings.Lines(digits) {
		if strings.Contains(line, "VERIFICATION") {
			return strings.TrimSpace(before)
		}
		before = line
	}
	return strings.TrimSpace(before)
}
