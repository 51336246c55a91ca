package agent

import (
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// attachedIn are pods of these namespaces.
type attachedIn []string

func (a attachedIn) List() (all []attach.Attachment) {
	for _, ns := range a {
		all = append(all, attach.Attachment{Namespace: ns})
	}
	return all
}

// TestEtcdWentBack: records of an etcd that was restored are not taken until what they lack was put back,
// and the node says what that is; also one that starts then, with its copy on disk.
func TestEtcdWentBack(t *testing.T) {
	at := func(rev int64, h topology.History, nodes ...topology.Node) topology.Snapshot {
		s := snapshot(rev, 0, nodes...)
		s.History = h
		return s
	}
	eleven := netid.ID(11)
	backup := topology.History{}.Begin("a")
	backup.Now.Revision = 5
	newest := backup
	newest.Now.Revision = 9
	held := at(9, newest, labSelf, labPeer)
	held.Namespaces["new"] = topology.Namespace{NetName: "new", Effective: &eleven}
	restored := at(20, backup.Begin("b"), labSelf)
	restored.History.Now.Revision = 19
	back := at(30, restored.History.Take([]topology.Point{held.History.Now}), labSelf, labPeer)

	for name, start := range map[string]func(*picture){
		"an agent that runs":   func(p *picture) { p.hold(held) },
		"an agent that starts": func(p *picture) { p.copied = &held },
	} {
		t.Run(name, func(t *testing.T) {
			p := &picture{name: "n1", self: labSelf.HostIP}
			n := &ownStatus{picture: p, attached: attachedIn{"new"}}
			start(p)
			if n.held() != nil {
				t.Errorf("it says that it holds %+v", n.held())
			}
			for range 2 {
				p.hold(restored)
				if p.records.Revision != 9 || p.older == nil || !p.fromEtcd {
					t.Fatalf("records of revision %d, etcd's are %+v", p.records.Revision, p.older)
				}
				h := n.held()
				if h == nil || h.At != newest.Now || len(h.Nodes) != 1 || h.Nodes[0].Host != labPeer.Host || len(h.Namespaces) != 1 || h.Namespaces[0].NetName != "new" {
					t.Errorf("it holds %+v", h)
				}
			}
			p.hold(back)
			if p.records.Revision != 30 || p.older != nil || n.held() != nil {
				t.Errorf("records of revision %d, etcd's are %+v; it holds %+v", p.records.Revision, p.older, n.held())
			}
			// Another network has another history.
			other := restored
			other.Config.Name = "other"
			p.hold(other)
			if p.records.Config.Name != "other" || p.older != nil {
				t.Errorf("records of %s", p.records.Config.Name)
			}
		})
	}
	// Policies that etcd has lost are a reason too.
	lost := topology.Point{Term: "a", Revision: 12}
	n := &ownStatus{picture: &picture{}, attached: attachedIn{}, lost: func() topology.Point { return lost }}
	if h := n.held(); h == nil || h.At != lost || len(h.Nodes)+len(h.Namespaces) > 0 {
		t.Errorf("it holds %+v", h)
	}
}
