package membership

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/lampause/lampause/job"
)

func TestConfigIsChecked(t *testing.T) {
	good := Config{Node: "n1", Boot: 1, Addr: netip.MustParseAddr("10.0.0.1")}
	if _, err := New(good); err != nil {
		t.Errorf("good config: %v", err)
	}
	for name, c := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"no name":    {func(c *Config) { c.Node = "" }, "node name"},
		"bad name":   {func(c *Config) { c.Node = "a#b" }, "node name"},
		"no boot":    {func(c *Config) { c.Boot = 0 }, "boot"},
		"no address": {func(c *Config) { c.Addr = netip.Addr{} }, "address"},
		"bad port":   {func(c *Config) { c.Port = 70000 }, "port"},
		"bad role":   {func(c *Config) { c.Role = "boss" }, "role"},
		"short key":  {func(c *Config) { c.SecretKey = []byte("short") }, "secret key"},
		"long label": {func(c *Config) { c.Cluster = strings.Repeat("x", 256) }, "label"},
		"fat meta":   {func(c *Config) { c.Version = strings.Repeat("v", 512) }, "meta"},
	} {
		cfg := good
		c.change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, want one about %q", name, err, c.says)
		}
	}
}

// TestMetaFitsWhenLeaving: a meta that New accepts still fits with the good-bye.
func TestMetaFitsWhenLeaving(t *testing.T) {
	for n := 300; n < 500; n++ {
		c := Config{Node: "n1", Boot: 1, Addr: netip.MustParseAddr("10.0.0.1"), Version: strings.Repeat("v", n)}
		if c.normalise() != nil {
			return
		}
		m := c.meta()
		m.Leaving = true
		if _, err := m.encode(); err != nil {
			t.Fatalf("version of %d bytes: %v", n, err)
		}
	}
	t.Error("no limit was met")
}

func TestMeta(t *testing.T) {
	m := Meta{
		Node: "n3", Boot: 7, Session: 1 << 60, Role: RoleSpare, Addr: netip.MustParseAddr("fd00::1234:5678:9abc:def0"),
		HTTPPort: 65535, Slots: 4096, Version: "v1.2.3-rc.1", Leaving: true,
	}
	b, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeMeta("n3#7", b)
	if err != nil || got != m {
		t.Errorf("decoded %+v, %v", got, err)
	}
	for name, c := range map[string]struct{ member, meta string }{
		"other boot":   {"n3#8", string(b)},
		"other node":   {"n4#7", string(b)},
		"no boot":      {"n3", string(b)},
		"odd boot":     {"n3#07", `{"n":"n3","b":7}`},
		"no JSON":      {"n3#7", "hello"},
		"bad port":     {"n3#7", `{"n":"n3","b":7,"h":70000}`},
		"negative":     {"n3#7", `{"n":"n3","b":7,"c":-1}`},
		"too long":     {"n3#7", `{"n":"n3","b":7,"v":"` + strings.Repeat("x", 512) + `"}`},
		"path as name": {"../x#7", `{"n":"../x","b":7}`},
	} {
		if m, err := decodeMeta(c.member, []byte(c.meta)); err == nil {
			t.Errorf("%s: accepted %+v", name, m)
		}
	}
}

// FuzzDecodeMeta: what comes from the network never panics, and what is accepted
// is consistent.
func FuzzDecodeMeta(f *testing.F) {
	f.Add("n1#1", []byte(`{"n":"n1","b":1,"s":1,"r":"compute","a":"10.0.0.1","h":7948,"c":4}`))
	f.Add("n1#1", []byte(`{}`))
	f.Add("#", []byte(`null`))
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		m, err := decodeMeta(name, b)
		if err != nil {
			return
		}
		if gossipName(m.Node, m.Boot) != name || !job.ValidNode(m.Node) || m.Slots < 0 {
			t.Errorf("%q %q gave %+v", name, b, m)
		}
	})
}

func TestLogLevels(t *testing.T) {
	for _, c := range []struct{ in, level, msg string }{
		{"[ERR] memberlist: Failed to send\n", "info", "Failed to send"},
		{"[WARN] memberlist: Refuting\n", "debug", "Refuting"},
		{"[INFO] memberlist: Marking n3 as failed\n", "trace", "Marking n3 as failed"},
		{"[DEBUG] memberlist: Stream connection\n", "trace", "Stream connection"},
		{"something else\n", "debug", "something else"},
		{"\n", "debug", ""},
	} {
		var buf bytes.Buffer
		w := logWriter{zerolog.New(&buf).Level(zerolog.TraceLevel)}
		if n, err := w.Write([]byte(c.in)); n != len(c.in) || err != nil {
			t.Errorf("%q: %d, %v", c.in, n, err)
		}
		var got struct{ Level, Message string }
		if err := json.Unmarshal(buf.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if got.Level != c.level || got.Message != c.msg {
			t.Errorf("%q became %+v", c.in, got)
		}
	}
}

// TestRealSockets runs three members over UDP and TCP on loopback addresses, in
// real time: they meet, one leaves, one is killed and its port refuses, which is
// no death yet.
func TestRealSockets(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	port := freePort(t)
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	type running struct {
		c      *Cluster
		cancel context.CancelFunc
		ended  chan error
	}
	var all []running
	for i := byte(1); i <= 3; i++ {
		c, err := New(Config{
			Node: nodeName(int(i)), Boot: 1, Session: 1, Addr: netip.AddrFrom4([4]byte{127, 0, 0, i}), Port: port,
			Seeds: func() []string { return []string{"127.0.0.1"} }, Log: zerolog.Nop(),
		})
		if err != nil {
			t.Fatal(err)
		}
		rctx, cancel := context.WithCancel(ctx)
		r := running{c, cancel, make(chan error, 1)}
		go func() { r.ended <- c.Run(rctx) }()
		go func() {
			for range c.Events() {
			}
		}()
		all = append(all, r)
	}
	wait := func(what string, c *Cluster, n job.NodeID, k Kind) {
		t.Helper()
		for ctx.Err() == nil {
			for _, m := range c.Members() {
				if m.Node == n && m.State == k {
					return
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("%s: %s never saw %s %s: %+v", what, c.cfg.Node, n, k, c.Members())
	}
	for _, r := range all {
		for i := 1; i <= 3; i++ {
			wait("join", r.c, nodeName(i), Alive)
		}
	}
	if err := all[2].c.Leave(ctx); err != nil {
		t.Errorf("leave: %v", err)
	}
	wait("leave", all[0].c, "n3", Left)
	all[1].cancel()
	if err := <-all[1].ended; err != nil {
		t.Errorf("run: %v", err)
	}
	wait("kill", all[0].c, "n2", Suspect)
	all[0].cancel()
	for _, i := range []int{0, 2} {
		if err := <-all[i].ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	if err := all[0].c.Run(ctx); err == nil {
		t.Error("a second run: no error")
	}
}

// freePort finds a port that is free on the loopback for UDP and TCP.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skipf("no loopback: %v", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// TestBindError: an address that is not ours is an error of Run, at once.
func TestBindError(t *testing.T) {
	c, err := New(Config{Node: "n1", Boot: 1, Addr: netip.MustParseAddr("192.0.2.1"), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.Run(ctx); err == nil || !strings.Contains(err.Error(), "192.0.2.1") {
		t.Errorf("error %v, want one that names the address", err)
	}
	if _, open := <-c.Events(); open {
		t.Error("events after the end")
	}
	if err := c.Leave(ctx); err == nil {
		t.Error("leave after the end: no error")
	}
}
