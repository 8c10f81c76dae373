package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
)

// program is a running duplex inside a pod.
type program struct {
	t    testing.TB
	ns   *netns
	args []string
	cmd  *exec.Cmd
	log  *lines
	tr   *proc.Tracer
	fz   *proc.Frozen
}

// lines collects what a program says.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
	got chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.got <- struct{}{}:
	default:
	}
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// duplex describes a run of testdata/duplex.c.
type duplex struct {
	mode         string
	ip           string
	conns        int
	tx, rx, rate int
	edge         bool
}

// start runs a program. A held one waits, at its very beginning, for release.
func start(t testing.TB, ns *netns, bin string, d duplex, held bool) *program {
	t.Helper()
	edge := "0"
	if d.edge {
		edge = "1"
	}
	hold := filepath.Join(filepath.Dir(bin), "hold")
	return startArgs(t, ns, []string{
		bin, d.mode, d.ip, "7000", strconv.Itoa(d.conns), strconv.Itoa(d.tx), strconv.Itoa(d.rx), strconv.Itoa(d.rate), edge, hold,
	}, held)
}

// startArgs runs a program with these arguments; the last is the file that
// holds it.
func startArgs(t testing.TB, ns *netns, args []string, held bool) *program {
	t.Helper()
	p := &program{t: t, ns: ns, args: args, log: &lines{got: make(chan struct{}, 1)}, tr: proc.NewTracer(kernel.New(nil))}
	hold := args[len(args)-1]
	if held {
		if err := os.WriteFile(hold, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Env = []string{}
	p.cmd.Stderr = p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{}
	ns.inside(t, func() error {
		// The same addresses in every run, so that a rebuilt process can take
		// the memory of the lost one.
		if _, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, addrNoRandomize, 0, 0); errno != 0 {
			return errno
		}
		return p.cmd.Start()
	})
	t.Cleanup(p.end)
	return p
}

// addrNoRandomize is ADDR_NO_RANDOMIZE of personality(2).
const addrNoRandomize = 0x0040000

// waitHeld waits until a held program is in its first sleep.
func waitHeld(t testing.TB, p *program) {
	t.Helper()
	for limit := time.Now().Add(10 * time.Second); ; {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", p.pid())); err == nil && bytes.Contains(b, []byte("nanosleep")) {
			break
		}
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", p.pid())); err == nil && bytes.HasPrefix(b, []byte("230 ")) {
			break // clock_nanosleep
		}
		if time.Now().After(limit) {
			t.Fatal("the held program does not start")
		}
		time.Sleep(time.Millisecond)
	}
}

func (p *program) end() {
	_ = p.cmd.Process.Kill()
	if p.fz != nil {
		_ = p.fz.Thaw(context.Background())
	}
	_ = p.tr.Close()
	_ = p.cmd.Wait()
}

// ready waits until the program has its connections.
func (p *program) ready() {
	p.t.Helper()
	limit := time.After(20 * time.Second)
	for !bytes.Contains([]byte(p.log.String()), []byte("ready\n")) {
		select {
		case <-p.log.got:
		case <-limit:
			p.t.Fatalf("program is not ready: %q", p.log.String())
		}
	}
}

// wait waits until the program ends well.
func (p *program) wait() {
	p.t.Helper()
	done := make(chan error, 1)
	go func() { done <- p.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			p.t.Fatalf("%v: %v: %s", p.args[1:], err, p.log)
		}
	case <-time.After(60 * time.Second):
		p.dump()
		_ = p.cmd.Process.Kill()
		<-done
		p.t.Fatalf("%v: hangs: %s", p.args[1:], p.log)
	}
}

// dump shows the sockets of the pod, for the log of a failed test.
func (p *program) dump() {
	_ = inNS(int(p.ns.file.Fd()), func() error {
		out, _ := exec.Command("ss", "-tionemp").CombinedOutput()
		p.t.Logf("%s:\n%s", p.ns.ip, out)
		return nil
	})
}

func (p *program) pid() int { return p.cmd.Process.Pid }

func (p *program) freeze() {
	p.t.Helper()
	f, err := p.tr.Freeze(testCtx(p.t), p.pid())
	if err != nil {
		p.t.Fatalf("freeze: %v: %s", err, p.log)
	}
	p.fz = f
}

func (p *program) thaw() {
	p.t.Helper()
	f := p.fz
	p.fz = nil
	if err := f.Thaw(testCtx(p.t)); err != nil {
		p.t.Fatalf("thaw: %v", err)
	}
}

// ended reports whether the frozen program has nothing left to do; a program
// that ended by itself cannot be frozen any more.
func (p *program) finished() bool { return bytes.Contains([]byte(p.log.String()), []byte("done\n")) }

// soul is what a program is made of, beside its sockets: enough for a
// single-threaded static program.
type soul struct {
	regs   kernel.Regs
	xstate []byte
	maps   []proc.Map
	mem    [][]byte
	epolls map[int][]Registration // by descriptor
}

func (p *program) save() *soul {
	p.t.Helper()
	maps, err := p.fz.Maps()
	if err != nil {
		p.t.Fatal(err)
	}
	s := &soul{regs: proc.Normalise(p.fz.Leader().Regs)}
	if s.xstate, err = p.fz.XState(p.fz.Leader()); err != nil {
		p.t.Fatal(err)
	}
	for _, m := range maps {
		if m.Prot&unix.PROT_WRITE == 0 || m.Shared {
			continue
		}
		buf := make([]byte, m.Len())
		if err := p.fz.ReadMem(m.Start, buf); err != nil {
			p.t.Fatalf("read %+v: %v", m, err)
		}
		s.maps, s.mem = append(s.maps, m), append(s.mem, buf)
	}
	s.epolls = p.epolls()
	return s
}

// epolls returns the registrations of every descriptor.
func (p *program) epolls() map[int][]Registration {
	p.t.Helper()
	regs, err := registrations(p.pid())
	if err != nil {
		p.t.Fatal(err)
	}
	out := map[int][]Registration{}
	for fd, eps := range regs {
		for _, ep := range eps {
			info, err := proc.ReadFDInfo(p.pid(), ep)
			if err != nil {
				p.t.Fatal(err)
			}
			for _, e := range info.Epoll {
				if e.FD == fd {
					out[fd] = append(out[fd], Registration{EpollFD: ep, Events: e.Events, Data: e.Data})
				}
			}
		}
	}
	return out
}

// load makes the frozen program what it was.
func (p *program) load(s *soul) {
	p.t.Helper()
	for i, m := range s.maps {
		if err := p.fz.WriteMem(m.Start, s.mem[i]); err != nil {
			p.t.Fatalf("write %+v: %v", m, err)
		}
	}
	th := p.fz.Leader()
	if err := p.fz.SetXState(th, s.xstate); err != nil {
		p.t.Fatal(err)
	}
	p.fz.DropSignal(th)
	p.fz.SetRegs(th, s.regs)
	// What pause/ does for registrations that are still there.
	b := p.fz.Batch(th)
	for fd, regs := range s.epolls {
		for _, r := range regs {
			ev := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(nil, r.Events), r.Data)
			b.Call(unix.SYS_EPOLL_CTL, uint64(r.EpollFD), unix.EPOLL_CTL_MOD, uint64(fd), b.Bytes(ev))
		}
	}
	if err := b.Run(testCtx(p.t)); err != nil {
		p.t.Fatalf("epoll: %v", err)
	}
}

func testCtx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		var r *Refusal
		if errors.As(err, &r) {
			for _, o := range r.Obstacles {
				t.Log(o)
			}
		}
		t.Fatal(err)
	}
}
