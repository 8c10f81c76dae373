package pause

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
)

// captureTerminal notes how a terminal is set that the program was given from
// outside: programs that set it up do so once. Other external files have
// nothing to note.
func (t *fileTable) captureTerminal(d *description, o *openFile) error {
	if o.stat.Mode&unix.S_IFMT != unix.S_IFCHR || o.info.Flags&unix.O_PATH != 0 {
		return nil
	}
	return t.withDup(d, func(fd int) error {
		set, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EIO) {
			return nil // another device, or a terminal that was hung up
		}
		if err != nil {
			return err
		}
		d.Terminal = &image.Terminal{
			Iflag: set.Iflag, Oflag: set.Oflag, Cflag: set.Cflag, Lflag: set.Lflag, Line: set.Line, Cc: set.Cc[:],
		}
		if size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err == nil {
			d.Terminal.Rows, d.Terminal.Cols = size.Row, size.Col
		}
		return nil
	})
}
