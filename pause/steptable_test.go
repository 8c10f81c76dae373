package pause

import (
	"slices"
	"testing"

	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// TestStepTable: what every op does in the states where it matters. want nil
// and ok means: done before.
func TestStepTable(t *testing.T) {
	at := func(p Phase, committed, draft job.Epoch, written bool) State {
		return State{Phase: p, Committed: committed, Draft: draft, Written: written, Last: max(committed, draft)}
	}
	back := State{Phase: RolledBack, Committed: 2, Last: 3, At: 2}
	released := State{Phase: Running, Committed: 2, Last: 3, At: 2}
	for name, c := range map[string]struct {
		s    State
		op   podapi.Op
		e    job.Epoch
		ok   bool
		want []Action
		then State
	}{
		"suspend":                    {at(Running, 1, 0, false), podapi.OpSuspend, 0, true, []Action{ActFreeze}, at(Suspended, 1, 0, false)},
		"suspend again":              {at(Suspended, 1, 0, false), podapi.OpSuspend, 0, true, nil, at(Suspended, 1, 0, false)},
		"suspend a frozen one":       {at(FrozenAt, 1, 2, false), podapi.OpSuspend, 0, false, nil, State{}},
		"continue":                   {at(Suspended, 1, 0, false), podapi.OpContinue, 0, true, []Action{ActThaw}, at(Running, 1, 0, false)},
		"continue again":             {at(Running, 1, 0, false), podapi.OpContinue, 0, true, nil, at(Running, 1, 0, false)},
		"continue a stopped one":     {at(Stopped, 1, 0, false), podapi.OpContinue, 0, false, nil, State{}},
		"adopt":                      {State{Phase: Running}, opAdopt, 4, true, []Action{ActAdopt}, State{Phase: Running, Committed: 4, Last: 4}},
		"adopt, numbers stay":        {State{Phase: Running, Last: 9}, opAdopt, 4, true, []Action{ActAdopt}, State{Phase: Running, Committed: 4, Last: 9}},
		"adopt a stopped one":        {at(Stopped, 1, 0, false), opAdopt, 4, false, nil, State{}},
		"adopt over a draft":         {at(Running, 1, 2, false), opAdopt, 4, false, nil, State{}},
		"freeze":                     {at(Running, 1, 0, false), podapi.OpFreeze, 2, true, []Action{ActFreeze}, at(FrozenAt, 1, 2, false)},
		"freeze again":               {at(FrozenAt, 1, 2, false), podapi.OpFreeze, 2, true, nil, at(FrozenAt, 1, 2, false)},
		"freeze for another":         {at(FrozenAt, 1, 2, false), podapi.OpFreeze, 3, false, nil, State{}},
		"freeze a captured one":      {at(Captured, 1, 2, false), podapi.OpFreeze, 2, false, nil, State{}},
		"freeze with an old number":  {at(Running, 1, 2, false), podapi.OpFreeze, 2, false, nil, State{}},
		"freeze drops an old draft":  {at(Running, 1, 2, true), podapi.OpFreeze, 3, true, []Action{ActDropDraft, ActFreeze}, at(FrozenAt, 1, 3, false)},
		"capture of another":         {at(FrozenAt, 1, 2, false), podapi.OpCaptureSend, 3, false, nil, State{}},
		"capture too early":          {at(FrozenAt, 1, 2, false), podapi.OpCaptureRecv, 2, false, nil, State{}},
		"write":                      {at(Running, 1, 2, false), podapi.OpWrite, 2, true, []Action{ActWrite}, at(Running, 1, 2, true)},
		"write again":                {at(Running, 1, 2, true), podapi.OpWrite, 2, true, nil, at(Running, 1, 2, true)},
		"write of another":           {at(Running, 1, 2, false), podapi.OpWrite, 1, false, nil, State{}},
		"write while frozen":         {at(FrozenAt, 1, 2, false), podapi.OpWrite, 2, false, nil, State{}},
		"write while half captured":  {at(Sent, 1, 2, false), podapi.OpWrite, 2, false, nil, State{}},
		"write before resume":        {at(Captured, 1, 2, false), podapi.OpWrite, 2, false, nil, State{}},
		"commit":                     {at(Running, 1, 2, true), podapi.OpCommit, 2, true, []Action{ActPromote}, at(Running, 2, 0, false)},
		"commit again":               {at(Running, 2, 0, false), podapi.OpCommit, 2, true, nil, at(Running, 2, 0, false)},
		"commit before the write":    {at(Running, 1, 2, false), podapi.OpCommit, 2, false, nil, State{}},
		"commit of another":          {at(Running, 1, 2, true), podapi.OpCommit, 3, false, nil, State{}},
		"abandon, frozen":            {at(Sent, 1, 2, false), podapi.OpAbandon, 2, true, []Action{ActThaw, ActDropDraft}, State{Phase: Running, Committed: 1, Last: 2}},
		"abandon, written":           {at(Running, 1, 2, true), podapi.OpAbandon, 2, true, []Action{ActDropDraft}, State{Phase: Running, Committed: 1, Last: 2}},
		"abandon of another":         {at(FrozenAt, 1, 2, false), podapi.OpAbandon, 3, true, nil, at(FrozenAt, 1, 2, false)},
		"abandon of the committed":   {at(Running, 2, 0, false), podapi.OpAbandon, 2, false, nil, State{}},
		"stop":                       {at(Running, 1, 2, true), podapi.OpStop, 1, true, []Action{ActFreeze}, at(Stopped, 1, 2, true)},
		"stop in a stall":            {at(Sent, 1, 2, false), podapi.OpStop, 1, true, []Action{ActDropDraft}, State{Phase: Stopped, Committed: 1, Last: 2}},
		"stop a suspended one":       {at(Suspended, 1, 0, false), podapi.OpStop, 1, true, nil, at(Stopped, 1, 0, false)},
		"stop again":                 {at(Stopped, 1, 0, false), podapi.OpStop, 1, true, nil, at(Stopped, 1, 0, false)},
		"rollback":                   {at(Stopped, 2, 0, false), podapi.OpRollback, 2, true, []Action{ActRollback}, State{Phase: RolledBack, Committed: 2, Last: 2, At: 2}},
		"rollback drops the draft":   {at(Stopped, 2, 3, true), podapi.OpRollback, 2, true, []Action{ActDropDraft, ActRollback}, back},
		"rollback to the draft":      {at(Stopped, 2, 3, true), podapi.OpRollback, 3, true, []Action{ActPromote, ActRollback}, State{Phase: RolledBack, Committed: 3, Last: 3, At: 3}},
		"rollback to half a draft":   {at(Stopped, 2, 3, false), podapi.OpRollback, 3, false, nil, State{}},
		"rollback to nothing":        {State{Phase: Stopped}, podapi.OpRollback, 0, false, nil, State{}},
		"rollback of a running one":  {at(Running, 2, 0, false), podapi.OpRollback, 2, false, nil, State{}},
		"rollback again":             {back, podapi.OpRollback, 2, true, nil, back},
		"rollback to another, again": {back, podapi.OpRollback, 3, false, nil, State{}},
		"release":                    {back, podapi.OpRelease, 2, true, []Action{ActRelease}, released},
		"release again":              {released, podapi.OpRelease, 2, true, nil, released},
		"release of another":         {released, podapi.OpRelease, 3, false, nil, State{}},
		"release without a rollback": {at(Running, 2, 0, false), podapi.OpRelease, 0, false, nil, State{}},
		"release a stopped one":      {at(Stopped, 2, 0, false), podapi.OpRelease, 2, false, nil, State{}},
	} {
		got, acts, err := step(c.s, Event{Op: c.op, Epoch: c.e})
		if (err == nil) != c.ok || !slices.Equal(acts, c.want) {
			t.Errorf("%s: %v, %v", name, acts, err)
		}
		if want := c.then; c.ok && got != want || !c.ok && got != c.s {
			t.Errorf("%s: then %+v", name, got)
		}
	}
}
