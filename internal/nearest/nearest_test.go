package nearest

import "testing"

func TestWord(t *testing.T) {
	words := []string{"ckpt-interval", "no-spare", "replicas", "spares", "n", "hosts", "local"}
	for wrote, want := range map[string]string{
		"sparse": "spares", "ckpt": "ckpt-interval", "replicsa": "replicas", "host": "hosts", "no-spares": "no-spare",
		"": "", "loacl": "local", "xy": "", "zebra-crossing": "", "re": "",
	} {
		if got := Word(wrote, words); got != want {
			t.Errorf("%q: %q, want %q", wrote, got, want)
		}
	}
}
