package store

import (
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// link is a unix socket in front of etcd's, which can fail.
type link struct {
	path, target string

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]bool
	frozen   chan struct{} // closed while traffic flows
}

func newLink(t *testing.T, target string) *link {
	t.Helper()
	dir, err := os.MkdirTemp("", "link")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{path: filepath.Join(dir, "s"), target: target, conns: map[net.Conn]bool{}, frozen: make(chan struct{})}
	close(l.frozen)
	l.listen()
	t.Cleanup(func() {
		l.cut()
		os.RemoveAll(dir)
	})
	return l
}

func (l *link) listen() {
	listener, err := net.Listen("unix", l.path)
	if err != nil {
		panic(err) // the folder is ours alone
	}
	l.mu.Lock()
	l.listener = listener
	l.mu.Unlock()
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", l.target)
			if err != nil {
				in.Close()
				continue
			}
			l.mu.Lock()
			l.conns[in], l.conns[out] = true, true
			l.mu.Unlock()
			go l.copy(in, out)
			go l.copy(out, in)
		}
	}()
}

func (l *link) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		l.mu.Lock()
		gate := l.frozen
		l.mu.Unlock()
		<-gate
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// cut ends all connections and takes no new ones.
func (l *link) cut() (heal func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listener.Close()
	for c := range l.conns {
		c.Close()
	}
	l.conns = map[net.Conn]bool{}
	return l.listen
}

// freeze lets nothing through, in silence.
func (l *link) freeze() (heal func()) {
	gate := make(chan struct{})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.frozen = gate
	return func() { close(gate) }
}
