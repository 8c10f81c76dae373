package proctool

import (
	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
)

// terminal puts our terminal, if there is one, into the state that the one of
// the image had: the program set it up once and counts on it. The size of a
// window is what it is: when it differs, resized is true and the program is to
// be told by SIGWINCH. back undoes it.
func terminal(m *image.Manifest) (back func(), resized bool) {
	back = func() {}
	for i := range m.Descriptions {
		want := m.Descriptions[i].Terminal
		if want == nil {
			continue
		}
		for n, name := range stdioNames() {
			if m.Descriptions[i].External != name {
				continue
			}
			old, err := unix.IoctlGetTermios(n, unix.TCGETS)
			if err != nil {
				continue // a file or pipe now
			}
			set := *old
			set.Iflag, set.Oflag, set.Cflag, set.Lflag, set.Line = want.Iflag, want.Oflag, want.Cflag, want.Lflag, want.Line
			copy(set.Cc[:], want.Cc)
			if err := unix.IoctlSetTermios(n, unix.TCSETS, &set); err != nil {
				continue // in the background: the shell's user decides
			}
			size, err := unix.IoctlGetWinsize(n, unix.TIOCGWINSZ)
			resized = err == nil && (size.Row != want.Rows || size.Col != want.Cols)
			return func() { _ = unix.IoctlSetTermios(n, unix.TCSETSW, old) }, resized //nolint:errcheck // it may be gone
		}
	}
	return back, false
}

// foregroundOf returns a process of the group that the terminal belonged to,
// the root process when that is not known.
func foregroundOf(m *image.Manifest, pids map[int]int, root int) int {
	for i := range m.Processes {
		if p := &m.Processes[i]; p.Foreground && pids[p.PID] != 0 {
			return pids[p.PID]
		}
	}
	return pids[root]
}
