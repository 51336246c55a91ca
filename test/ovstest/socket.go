package ovstest

import "net"

// answers reports whether something accepts connections on a unix socket; the
// socket's file may be left over from a daemon that was killed.
func answers(path string) bool {
	c, err := net.Dial("unix", path)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}
