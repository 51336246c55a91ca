package agent

import (
	"cmp"
	"log/slog"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/records"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// picture is what the loop knows of the node. It belongs to the loop's goroutine; the
// steps of a pass read it, and each writes what it has found out or done.
type picture struct {
	// name and self are the node's name and tunnel address; they do not change.
	name string
	self netip.Addr
	// records are the newest ones held, copied those found on disk; applied is
	// the revision in the flows.
	records  *topology.Snapshot
	copied   *topology.Snapshot
	fromEtcd bool
	applied  int64
	// older is what etcd has where it went back to older records, which lack some of what
	// these have; nil where it did not.
	older *topology.Snapshot
	// started is the subnet that the node was set up with; not valid before.
	started netip.Prefix
	// under is the underlay as last seen, podMTU what pods send, bytes.
	under  underlay.Underlay
	podMTU int
	// tunnels are the node's end of them, as last decided.
	tunnels tunnels
}

// loadCopy takes the records from disk, for a start while etcd is away.
func (p *picture) loadCopy(file records.File[topology.Snapshot], log *slog.Logger) {
	s, ok, err := file.Load()
	if err != nil {
		log.Warn("starting without the copy of the records", "error", err)
		return
	}
	if ok {
		p.copied = &s
	}
}

// useCopy goes on with the records on disk, where etcd has given none.
func (p *picture) useCopy(log *slog.Logger) {
	if p.records == nil && p.copied != nil {
		log.Warn("etcd does not answer: going on with the copy of the records on disk", "revision", p.copied.Revision)
		p.records = p.copied
	}
}

// hold makes s the newest records. Where etcd went back to older ones those from before stay,
// until a leader has put back what is missing: docs/restored-etcd.md.
func (p *picture) hold(s topology.Snapshot) {
	before := cmp.Or(p.records, p.copied)
	p.fromEtcd, p.older = true, nil
	if before != nil && before.Config.Name == s.Config.Name && !s.History.Holds(before.History.Now) {
		p.records, p.older = before, &s
		return
	}
	if before != nil {
		s = records.Carry(*before, s)
	}
	p.records = &s
}
