package conduct

import (
	"fmt"

	"github.com/lampause/lampause/scheduler"
)

func (w *world) logAction(l *wleader, a Action) {
	if w.trace == nil {
		return
	}
	switch a := a.(type) {
	case Propose:
		w.logf("  propose %s", commandText(a.Command))
	case StartPod:
		w.logf("  start pod %d on %s incarnation %d restore=%t", a.Pod, a.Node, a.Spec.Incarnation, a.Spec.Restore)
	case KillPod:
		w.logf("  kill pod %d on %s up to %d", a.Pod, a.Node, a.UpTo)
	case Call:
		w.logf("  %s pod %d on %s epoch %d", a.Request.Op, a.Pod, a.Node, a.Request.Epoch)
	case Copy:
		w.logf("  copy epoch %d pod %d from %v to %s", a.Epoch, a.Pod, a.From, a.To)
	case Seal:
		w.logf("  seal epoch %d of pods %v on %s", a.Epoch.Epoch, a.Pods, a.Node)
	case Drop:
		w.logf("  drop epoch %d on %s", a.Epoch, a.Node)
	case PullFences:
		w.logf("  pull fences of pod %d on %s", a.Pod, a.Node)
	case Answer:
		w.logf("  answer %d: %s", a.Ticket, failureText(a.Failure))
	case FenceAnswer:
		w.logf("  answer fence %d to %v stale=%t %v", a.Reply.Seq, a.Tickets, a.Stale, a.Reply.Puts)
	}
}

func failureText(f *Failure) string {
	if f == nil {
		return "done"
	}
	return f.Text
}

func commandText(c scheduler.Command) string {
	switch {
	case c.DeclareDead != nil:
		return fmt.Sprintf("dead %v", c.DeclareDead.Nodes)
	case c.Started != nil:
		return "started"
	case c.BeginEpoch != nil:
		return "begin epoch"
	case c.Commit != nil:
		return fmt.Sprintf("commit epoch %d", c.Commit.Epoch)
	case c.Abandon != nil:
		return fmt.Sprintf("abandon epoch %d: %s", c.Abandon.Epoch, c.Abandon.Reason)
	case c.Collect != nil:
		return fmt.Sprintf("collect before %d", c.Collect.Before)
	case c.Replicated != nil:
		return fmt.Sprintf("replicated epoch %d pod %d on %s", c.Replicated.Epoch, c.Replicated.Pod, c.Replicated.Node.Node)
	case c.Recover != nil:
		return fmt.Sprintf("recover pods %v move %v (%s): %s", c.Recover.Pods, c.Recover.Move, c.Recover.Why, c.Recover.Cause)
	case c.Recovered != nil:
		return "recovered"
	case c.End != nil:
		return fmt.Sprintf("end code %d: %s", c.End.Code, c.End.Reason)
	case c.Retire != nil:
		return "retire"
	case c.Suspend != nil:
		return fmt.Sprintf("suspend %t", c.Suspend.On)
	case c.Damaged != nil:
		return fmt.Sprintf("damaged epoch %d pod %d on %v", c.Damaged.Epoch, c.Damaged.Pod, c.Damaged.Nodes)
	}
	return "?"
}
