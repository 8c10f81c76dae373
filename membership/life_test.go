package membership

import (
	"testing"
	"time"
)

// TestLifeOfSixtyFour is a minute of a large cluster: nodes are slow, die one by
// one and as a rack, join, and come back, at the same time. All agree in the end,
// and nobody is called dead who lives.
func TestLifeOfSixtyFour(t *testing.T) {
	if testing.Short() {
		t.Skip("64 members take several seconds; not with -short")
	}
	bubble(t, func(l *lab) {
		l.startAll(60)
		l.net.Delay(hostPort(7), 40*time.Millisecond)
		time.Sleep(time.Second)
		l.powerOff(30, 1)
		time.Sleep(300 * time.Millisecond)
		for i := 61; i <= 64; i++ { // they join while a death is being told
			l.start(i, 1, 1)
		}
		// A joiner may have heard nothing of a life that was over.
		l.until(time.Minute, "the death is seen by all", func() bool {
			for _, m := range l.members {
				if s := m.state("n30", 1); s != Dead && s != "" {
					return false
				}
			}
			return true
		})
		for i := 41; i <= 44; i++ { // a rack
			l.powerOff(i, 1)
		}
		l.net.Mute(hostPort(30), false)
		l.start(30, 2, 2) // and one returns
		for i := 41; i <= 44; i++ {
			l.until(time.Minute, "the rack is seen by all", l.everybody(nodeName(i), 1, Dead))
		}
		l.until(time.Minute, "all see all", func() bool {
			for _, m := range l.members {
				if m.count(Alive) != 60 {
					return false
				}
			}
			return true
		})
		if !l.everybody("n30", 2, Alive)() || !l.everybody("n7", 1, Alive)() {
			t.Error("the one that returned, or the slow one, is not seen by all")
		}
		if d := l.deaths("n30", "n41", "n42", "n43", "n44"); d != 0 {
			t.Errorf("%d false deaths", d)
		}
	})
}
