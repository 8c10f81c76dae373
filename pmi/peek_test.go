package pmi

import "golang.org/x/sys/unix"

// peek returns how many bytes can be read from a socket.
func peek(fd int) int {
	n, _, err := unix.Recvfrom(fd, make([]byte, 64), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err != nil {
		return 0
	}
	return n
}
