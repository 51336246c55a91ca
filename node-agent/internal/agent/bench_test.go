package agent

import (
	"fmt"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/records"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// atOnce is the copy on disk written in the loop's turn, as it was before there was a writer beside it.
type atOnce struct {
	file records.File[topology.Snapshot]
	b    *testing.B
}

func (a atOnce) Keep(s topology.Snapshot) {
	if err := a.file.Save(s); err != nil {
		a.b.Fatal(err)
	}
}

// BenchmarkTurn is what one revision of the records costs the loop, but for the flows: the table is the
// fake. The copy on disk is written in the turn, or left to the writer.
func BenchmarkTurn(b *testing.B) {
	for _, namespaces := range []int{100, 5000} {
		for _, beside := range []bool{false, true} {
			b.Run(fmt.Sprintf("namespaces=%d/beside=%t", namespaces, beside), func(b *testing.B) {
				l := &lab{etcd: &etcd{}, machine: newMachine(), dir: b.TempDir()}
				l.build()
				l.loop.started = labSelf.Subnet
				s := snapshot(1, namespaces, labSelf, labPeer)
				l.loop.hold(s)
				p := &pass{me: labSelf}
				p.ports = desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}
				for _, step := range []func() error{
					func() error { return l.loop.flows.setPorts(b.Context(), p) }, func() error { return l.loop.flows.connect(b.Context(), p) },
				} {
					if err := step(); err != nil {
						b.Fatal(err)
					}
				}
				file := records.NewFile(l.dir)
				l.loop.flows.copies = atOnce{file, b}
				if beside {
					w := records.NewWriter(file, l.loop.log)
					defer w.Close()
					l.loop.flows.copies = w
				}
				l.loop.ready.set(nil)
				for b.Loop() {
					s.Revision++
					if !l.loop.follow(b.Context(), s) {
						b.Fatal("it needs a pass")
					}
				}
			})
		}
	}
}
