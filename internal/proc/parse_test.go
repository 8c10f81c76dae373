package proc

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

func TestParseMaps(t *testing.T) {
	const text = `55d0c8a00000-55d0c8a02000 r--p 00001000 fd:01 1234                       /usr/bin/a b\012c
Size:                  8 kB
VmFlags: rd mr mw me sd
7f0000000000-7f0000001000 rw-s 00000000 00:05 77                         /dev/zero (deleted)
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
VmFlags: rd wr mr mw me gd ac
7f1000000000-7f1000001000 ---p 00000000 00:00 0
`
	got, err := ParseMaps([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []Map{
		{
			Range: kernel.Range{Start: 0x55d0c8a00000, End: 0x55d0c8a02000}, Prot: unix.PROT_READ, Offset: 0x1000,
			Dev: unix.Mkdev(0xfd, 1), Ino: 1234, Path: "/usr/bin/a b\nc", Flags: []string{"rd", "mr", "mw", "me", "sd"},
		},
		{
			Range: kernel.Range{Start: 0x7f0000000000, End: 0x7f0000001000}, Prot: 3, Shared: true,
			Dev: unix.Mkdev(0, 5), Ino: 77, Path: "/dev/zero", Gone: true,
		},
		{
			Range: kernel.Range{Start: 0x7ffd00000000, End: 0x7ffd00021000}, Prot: 3, Path: "[stack]",
			Flags: []string{"rd", "wr", "mr", "mw", "me", "gd", "ac"},
		},
		{Range: kernel.Range{Start: 0x7f1000000000, End: 0x7f1000001000}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestParseSelf parses what this kernel says of the test itself.
func TestParseSelf(t *testing.T) {
	pid := os.Getpid()
	maps, err := SMaps(pid)
	if err != nil || len(maps) == 0 || len(maps[0].Flags) == 0 {
		t.Errorf("smaps: %d mappings, %v", len(maps), err)
	}
	st, err := ReadStatus(pid)
	if err != nil || st.Tgid != pid || st.PPid != os.Getppid() || st.UID[0] != os.Getuid() {
		t.Errorf("status: %+v, %v", st, err)
	}
	stat, err := ReadStat(pid)
	if err != nil || stat.PPid != os.Getppid() || stat.StartStack == 0 {
		t.Errorf("stat: %+v, %v", stat, err)
	}
	fds, err := FDs(pid)
	if err != nil || len(fds) == 0 {
		t.Errorf("descriptors: %v, %v", fds, err)
	}
	if _, err := ReadFDInfo(pid, fds[0]); err != nil {
		t.Error(err)
	}
}

func TestParseFDInfo(t *testing.T) {
	const text = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1038\n" +
		"tfd:        8 events:       19 data: 7f12deadbeef  pos:0 ino:1b sdev:9\n" +
		"tfd:        9 events: 40000001 data:            3  pos:12 ino:40e sdev:f\n"
	got, err := ParseFDInfo([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := &FDInfo{Flags: unix.O_CLOEXEC | unix.O_RDWR, Ino: 1038, Epoll: []EpollTarget{
		{FD: 8, Events: 0x19, Data: 0x7f12deadbeef, Ino: 0x1b, Dev: 9},
		{FD: 9, Events: 0x40000001, Data: 3, Pos: 12, Ino: 0x40e, Dev: 15},
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	timer, err := ParseFDInfo([]byte("clockid: 1\nticks: 2\nsettime flags: 01\nit_value: (0, 49406829)\nit_interval: (1, 0)\n"))
	if err != nil || !timer.Timerfd || timer.TimerTicks != 2 || timer.TimerValueNS != 49406829 || timer.TimerIntvlNS != 1e9 {
		t.Errorf("timerfd: %+v, %v", timer, err)
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add([]byte("00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/dbus-daemon\nVmFlags: rd ex\n"))
	f.Add([]byte("-  - -:\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		maps, err := ParseMaps(b)
		for _, m := range maps {
			if err == nil && m.Start >= m.End {
				t.Errorf("mapping %+v accepted", m)
			}
		}
	})
}

func FuzzParseStatus(f *testing.F) {
	f.Add([]byte("Name:\tcat\nState:\tR (running)\nUid:\t0\t0\t0\t0\nNSpid:\t12\t1\nSigBlk:\t0000000000000000\nRssAnon:\t 12 kB\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseStatus(b); err == nil {
			_ = s.Inner()
		}
	})
}

func FuzzParseStat(f *testing.F) {
	if b, err := os.ReadFile("/proc/self/stat"); err == nil {
		f.Add(b)
	}
	f.Add([]byte("1 (a) b) R 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseStat(b); err == nil && s == nil {
			t.Error("neither a result nor an error")
		}
	})
}

func FuzzParseFDInfo(f *testing.F) {
	f.Add([]byte("pos:\t0\nflags:\t02\ntfd: 1 events: 1 data: 1 pos:0 ino:1 sdev:1\n"))
	f.Add([]byte("it_value: (0,\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if i, err := ParseFDInfo(b); err == nil && i == nil {
			t.Error("neither a result nor an error")
		}
	})
}
