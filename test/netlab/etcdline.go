package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// EtcdLine is the way of one node to etcd. It can be slow, and it can be cut, while the node's packets to other
// nodes go as before.
type EtcdLine struct {
	lab      *Lab
	table    string
	listener net.Listener
	works    sync.WaitGroup

	mu    sync.Mutex
	delay time.Duration
	cut   bool
	conns map[net.Conn]struct{}
}

// EtcdLine puts itself into the way of a node to the lab's etcd. What is connected already is connected anew.
// Close takes it out again.
func (l *Lab) EtcdLine(ctx context.Context, node string) (*EtcdLine, error) {
	n, err := l.Node(node)
	if err != nil {
		return nil, err
	}
	listener, err := ns.ListenTCP(ns.Path(l.ControllerNetns()), "0.0.0.0:0")
	if err != nil {
		return nil, err
	}
	line := &EtcdLine{lab: l, table: "line-" + node, listener: listener, conns: map[net.Conn]struct{}{}}
	line.works.Go(line.serve)
	err = line.nft(ctx, fmt.Sprintf(`table ip %s { chain c { type nat hook prerouting priority dstnat; ip saddr %s tcp dport 2379 redirect to :%d; }; }`,
		line.table, n.VTEP, listener.Addr().(*net.TCPAddr).Port))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the way of %s to etcd: %w", node, err), line.Close(ctx))
	}
	return line, nil
}

func (e *EtcdLine) nft(ctx context.Context, rules string) error {
	cmd := exec.CommandContext(ctx, "nft", rules)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Do(e.lab.ControllerNetns(), cmd.Run); err != nil {
		return fmt.Errorf("nft: %w: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// Delay has all that etcd says to the node, events of its watches first of all, come so much later.
func (e *EtcdLine) Delay(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.delay = d
}

// Cut lets nothing through. Nobody is told: connections stay open, new ones too.
func (e *EtcdLine) Cut() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cut = true
}

// Mend undoes Cut. Connections of before end, as they lack what was said meanwhile.
func (e *EtcdLine) Mend() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cut = false
	e.hangUp()
}

// hangUp ends all connections. e.mu is held.
func (e *EtcdLine) hangUp() {
	for c := range e.conns {
		_ = c.Close() // whoever reads from it ends
	}
}

// Close takes the line out of the way.
func (e *EtcdLine) Close(ctx context.Context) error {
	err := errors.Join(e.nft(ctx, "table ip "+e.table), e.nft(ctx, "delete table ip "+e.table), e.listener.Close())
	e.mu.Lock()
	e.hangUp()
	e.mu.Unlock()
	e.works.Wait()
	return err
}

func (e *EtcdLine) isCut() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cut
}

func (e *EtcdLine) delayed() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.delay
}

func (e *EtcdLine) serve() {
	for {
		in, err := e.listener.Accept()
		if err != nil {
			return
		}
		e.works.Go(func() { e.join(in) })
	}
}

// keep has a connection end with the others; the function returned closes it.
func (e *EtcdLine) keep(c net.Conn) (closes func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conns[c] = struct{}{}
	return func() {
		_ = c.Close() // it may be closed already
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.conns, c)
	}
}

// join joins a node's connection with one to etcd until one of the two ends.
func (e *EtcdLine) join(in net.Conn) {
	defer e.keep(in)()
	if e.isCut() {
		_, _ = io.Copy(io.Discard, in) // nobody answers
		return
	}
	out, err := ns.DialTCP(ns.Path(e.lab.ControllerNetns()), etcdAddress, 5*time.Second)
	if err != nil {
		return // the node sees that nobody is there
	}
	defer e.keep(out)()
	var both sync.WaitGroup
	both.Go(func() {
		defer func() { _ = in.Close() }()
		e.answers(in, out)
	})
	both.Go(func() {
		defer func() { _ = out.Close() }()
		e.pass(in, func(said []byte) error { _, err := out.Write(said); return err })
	})
	both.Wait()
}

// pass hands on what is said, but for what is said while the line is cut.
func (e *EtcdLine) pass(from net.Conn, on func(said []byte) error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !e.isCut() && on(buf[:n]) != nil {
			return
		}
	}
}

// answer is something that etcd has said, and when it is to be heard.
type answer struct {
	said []byte
	at   time.Time
}

// answers hands on what etcd says, late.
func (e *EtcdLine) answers(to, from net.Conn) {
	late := make(chan answer, 1024)
	var heard sync.WaitGroup
	heard.Go(func() {
		for a := range late {
			time.Sleep(time.Until(a.at))
			if !e.isCut() {
				_, _ = to.Write(a.said) // whoever is gone hears nothing
			}
		}
	})
	e.pass(from, func(said []byte) error {
		late <- answer{bytes.Clone(said), time.Now().Add(e.delayed())}
		return nil
	})
	close(late)
	heard.Wait()
}
