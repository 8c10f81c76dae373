package membership

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/rs/zerolog"

	"github.com/lampause/lampause/job"
)

// DefaultPort is the gossip port, UDP and TCP.
const DefaultPort = 7946

// Config says who this node is and whom it looks for.
type Config struct {
	Node     job.NodeID // required
	Boot     job.Boot   // >= 1
	Session  uint64     // rises at every start of lamd
	Role     string     // RoleCompute (default) or RoleSpare
	Slots    int        // ranks this node takes
	Addr     netip.Addr // to bind and to advertise, required
	Port     int        // 0 = DefaultPort
	HTTPPort int        // of lamd's node API
	Version  string     // of lampause, shown to others

	// Seeds returns addresses ("10.0.0.1:7946" or "10.0.0.1") of possible
	// members. It is called again at every attempt until one join succeeds;
	// nil or our own address alone means: be found.
	Seeds func() []string

	// Cluster separates clusters that can hear each other: packets of another
	// label are dropped. At most 255 bytes.
	Cluster string

	// SecretKey (16, 24 or 32 bytes) encrypts the gossip with AES-GCM; nil for
	// networks that belong to the cluster alone.
	SecretKey []byte

	// Transport replaces UDP and TCP (tests: package membership/memnet).
	Transport memberlist.Transport

	Tuning Tuning // zero fields take the defaults of DefaultTuning
	Log    zerolog.Logger
}

// Tuning holds the times of failure detection. The defaults detect a silent
// node in 0.8 to 1.0 s (median) with 5 or 16 members and all cores busy.
type Tuning struct {
	// ProbeInterval is the period of memberlist's round-robin probes, and the
	// unit of its suspicion timeout SuspicionMult * max(1, log10 n) *
	// ProbeInterval. Default 200 ms.
	ProbeInterval time.Duration
	// ProbeTimeout is how long a direct ping may take before others are asked
	// to ping, and the timeout of our own pings. Default 100 ms.
	ProbeTimeout time.Duration
	// SuspicionMult: default 3. SuspicionMaxMult times the suspicion timeout is
	// the longest wait, when no other member confirms. Default 2.
	SuspicionMult    int
	SuspicionMaxMult int
	// GossipInterval is the period of dissemination. Default 50 ms.
	GossipInterval time.Duration

	// ProbeEvery is the period of our own probes of an accused member, and
	// DialTimeout bounds each. Defaults 150 ms and 150 ms.
	ProbeEvery  time.Duration
	DialTimeout time.Duration
	// ConfirmSpan: accused by the daemon (reset, timeout, pod), a member that
	// our probes could not reach for this long is dead. Default 300 ms.
	ConfirmSpan time.Duration
	// LocalAfter: without any other source, a member that our probes could not
	// reach for this long is dead. Default 1500 ms.
	LocalAfter time.Duration
	// RestartGrace is what a lamd gets to come back while its host answers.
	// Default 4 s.
	RestartGrace time.Duration
	// IsolationHold delays verdicts while most other members seem lost, from
	// the first evidence. Default 2 s.
	IsolationHold time.Duration
	// BatchWindow is how long a verdict waits for other suspects to be decided
	// too; without other suspects there is no wait. Default 150 ms.
	BatchWindow time.Duration
	// StallGap: a gap of this length between two ticks of 50 ms means that this
	// process was not scheduled. Default 250 ms.
	StallGap time.Duration
	// RejoinEvery is the first pause between dials of a dead member; it doubles
	// up to 16 times its value. Default 5 s.
	RejoinEvery time.Duration
}

// tickEvery is the period of the table's clock.
const tickEvery = 50 * time.Millisecond

// DefaultTuning returns the values named in Tuning.
func DefaultTuning() Tuning {
	return Tuning{
		ProbeInterval: 200 * time.Millisecond, ProbeTimeout: 100 * time.Millisecond,
		SuspicionMult: 3, SuspicionMaxMult: 2, GossipInterval: 50 * time.Millisecond,
		ProbeEvery: 150 * time.Millisecond, DialTimeout: 150 * time.Millisecond,
		ConfirmSpan: 300 * time.Millisecond, LocalAfter: 1500 * time.Millisecond,
		RestartGrace: 4 * time.Second, IsolationHold: 2 * time.Second,
		BatchWindow: 150 * time.Millisecond, StallGap: 250 * time.Millisecond,
		RejoinEvery: 5 * time.Second,
	}
}

// withDefaults fills the zero fields of t.
func (t Tuning) withDefaults() Tuning {
	d := DefaultTuning()
	for _, f := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&t.ProbeInterval, d.ProbeInterval},
		{&t.ProbeTimeout, d.ProbeTimeout},
		{&t.GossipInterval, d.GossipInterval},
		{&t.ProbeEvery, d.ProbeEvery},
		{&t.DialTimeout, d.DialTimeout},
		{&t.ConfirmSpan, d.ConfirmSpan},
		{&t.LocalAfter, d.LocalAfter},
		{&t.RestartGrace, d.RestartGrace},
		{&t.IsolationHold, d.IsolationHold},
		{&t.BatchWindow, d.BatchWindow},
		{&t.StallGap, d.StallGap},
		{&t.RejoinEvery, d.RejoinEvery},
	} {
		if *f.v == 0 {
			*f.v = f.def
		}
	}
	if t.SuspicionMult == 0 {
		t.SuspicionMult = d.SuspicionMult
	}
	if t.SuspicionMaxMult == 0 {
		t.SuspicionMaxMult = d.SuspicionMaxMult
	}
	return t
}

// normalise checks c and fills its defaults.
//
// Expected errors: one that names the field.
func (c *Config) normalise() error {
	if c.Role == "" {
		c.Role = RoleCompute
	}
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	c.Tuning = c.Tuning.withDefaults()
	switch {
	case !job.ValidNode(c.Node):
		return fmt.Errorf("membership: node name %q: not valid", c.Node)
	case c.Boot == 0:
		return fmt.Errorf("membership: node %s: boot 0", c.Node)
	case c.Role != RoleCompute && c.Role != RoleSpare:
		return fmt.Errorf("membership: role %q: not %s or %s", c.Role, RoleCompute, RoleSpare)
	case !c.Addr.IsValid():
		return fmt.Errorf("membership: node %s: no address", c.Node)
	case c.Port < 1 || c.Port > 65535:
		return fmt.Errorf("membership: port %d: not in 1..65535", c.Port)
	case len(c.Cluster) > memberlist.LabelMaxSize:
		return fmt.Errorf("membership: cluster label of %d bytes: at most %d", len(c.Cluster), memberlist.LabelMaxSize)
	}
	switch len(c.SecretKey) {
	case 0, 16, 24, 32:
	default:
		return fmt.Errorf("membership: secret key of %d bytes: not 16, 24 or 32", len(c.SecretKey))
	}
	m := c.meta()
	m.Leaving = true // the longest that it gets
	_, err := m.encode()
	return err
}

// meta is what this node says about itself.
func (c *Config) meta() Meta {
	return Meta{
		Node: c.Node, Boot: c.Boot, Session: c.Session, Role: c.Role,
		Addr: c.Addr, HTTPPort: c.HTTPPort, Slots: c.Slots, Version: c.Version,
	}
}

// gossipConfig builds memberlist's configuration from the LAN defaults. (Its
// "local" defaults converge an order of magnitude more slowly with 16 members.)
func (c *Config) gossipConfig() *memberlist.Config {
	mc := memberlist.DefaultLANConfig()
	mc.Name = gossipName(c.Node, c.Boot)
	mc.BindAddr = c.Addr.String()
	mc.BindPort = c.Port
	mc.AdvertiseAddr = c.Addr.String()
	mc.AdvertisePort = c.Port
	mc.Label = c.Cluster
	mc.SecretKey = c.SecretKey
	mc.ProbeInterval = c.Tuning.ProbeInterval
	mc.ProbeTimeout = c.Tuning.ProbeTimeout
	mc.SuspicionMult = c.Tuning.SuspicionMult
	mc.SuspicionMaxTimeoutMult = c.Tuning.SuspicionMaxMult
	mc.GossipInterval = c.Tuning.GossipInterval
	mc.AwarenessMaxMultiplier = 4 // a degraded prober probes at most every 800 ms
	// A node sends each message RetransmitMult * ceil(log10(n+1)) times to random
	// others, so a member misses one with probability exp(-that): with the default
	// 4, one join storm of 64 nodes leaves a hole more often than not until the
	// next full exchange.
	mc.RetransmitMult = retransmitMult
	mc.PushPullInterval = 5 * time.Second
	mc.TCPTimeout = joinTimeout
	mc.EnableCompression = false // the messages are small; CPU belongs to the ranks
	mc.DNSConfigPath = ""
	return mc
}

// retransmitMult: see gossipConfig.
const retransmitMult = 6

// joinTimeout bounds a full exchange of state with one member.
const joinTimeout = 2 * time.Second

// selfAddr is host:port of our gossip.
func (c *Config) selfAddr() string {
	return netip.AddrPortFrom(c.Addr, uint16(c.Port)).String()
}

// withPort appends the gossip port to an address without one.
func withPort(addr string, port int) string {
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return net.JoinHostPort(addr, strconv.Itoa(port))
}
