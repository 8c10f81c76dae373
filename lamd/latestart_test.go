package lamd

import (
	"errors"
	"net/http"
	"testing"

	"github.com/lampause/lampause/internal/control"
)

// A start that a former leader sent may come after the kill that fenced its
// pod, after a newer build, or in another life of the node.
func TestLateStartIsRefused(t *testing.T) {
	n, _ := testNode(t, "n1")
	n.boot = 2
	conflict := func(what string, err error) {
		t.Helper()
		var e *control.Error
		if !errors.As(err, &e) || e.Status != http.StatusConflict {
			t.Errorf("%s: %v", what, err)
		}
		if len(n.pods.list()) > 1 {
			t.Errorf("%s: %d pods", what, len(n.pods.list()))
		}
	}
	ctx := testContext(t)
	other := specOf(7, 3)
	other.Boot = 1
	conflict("of a former boot", n.start(ctx, other))
	if err := n.start(ctx, specOf(7, 3)); err != nil {
		t.Fatal(err)
	}
	conflict("of an older build", n.start(ctx, specOf(7, 2)))
	if err := n.start(ctx, specOf(7, 3)); err != nil {
		t.Errorf("repeated: %v", err)
	}
	if err := n.kill(ctx, killRequest{Job: 7, Pod: 0, UpTo: 3}); err != nil {
		t.Fatal(err)
	}
	conflict("of a killed build", n.start(ctx, specOf(7, 3)))
	next := specOf(7, 4)
	next.Boot = 2
	if err := n.start(ctx, next); err != nil {
		t.Errorf("of the next incarnation: %v", err)
	}
}
