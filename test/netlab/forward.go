package netlab

import (
	"io"
	"net"
	"sync"
)

// join copies both ways until both have ended, and closes both.
func join(a, b net.Conn) {
	var wg sync.WaitGroup
	half := func(to, from net.Conn) {
		defer wg.Done()
		_, _ = io.Copy(to, from) // an error ends this half as an end does
		if c, ok := to.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite()
		}
	}
	wg.Add(2)
	go half(a, b)
	go half(b, a)
	wg.Wait()
	_ = a.Close()
	_ = b.Close()
}
