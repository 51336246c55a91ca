package namesakes

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// pods are the attachments of a node.
type pods map[string]attach.UIDs

func key(pod string) cniapi.Attachment { return cniapi.Attachment{ContainerID: pod, IfName: "eth0"} }

func (p pods) List() (out []attach.Attachment) {
	for name, uids := range p {
		out = append(out, attach.Attachment{Attachment: key(name), Namespace: "red", Pod: name, UIDs: uids})
	}
	return out
}

func (p pods) Bind(_ context.Context, uids map[cniapi.Attachment]string) error {
	for a, uid := range uids {
		p[a.ContainerID] = attach.UIDs{Namespace: uid, Pod: p[a.ContainerID].Pod}
	}
	return nil
}

// api has pods of namespace red, by name, with their UIDs.
type api struct {
	pods  map[string]string
	err   error
	asked int
}

func (a *api) Pod(_ context.Context, _ string, k kube.PodKey) (kube.Pod, error) {
	a.asked++
	if a.err != nil {
		return kube.Pod{}, a.err
	}
	uid, ok := a.pods[k.Name]
	if !ok {
		return kube.Pod{}, kube.ErrNotFound
	}
	return kube.Pod{PodKey: k, UID: uid}, nil
}

func red(uid string) topology.Snapshot {
	id := netid.ID(7)
	return topology.Snapshot{Config: topology.DefaultConfig(), Namespaces: map[string]topology.Namespace{"red": {NetName: "red", UID: uid, Effective: &id}}}
}

// What came before UIDs were noted is of the Namespace that is there first; of what came in
// another one only what the API server has is of its namesake.
func TestLook(t *testing.T) {
	have := pods{
		"noted": {Namespace: "A", Pod: "1"}, "unnoted": {}, "unsaid": {Namespace: "A"}, "early": {Namespace: "A", Pod: "2"}, "again": {Namespace: "A", Pod: "3"},
	}
	server := &api{pods: map[string]string{"early": "2", "again": "4", "unsaid": "5"}, err: errors.New("away")}
	n := New(server, "n1", have, slog.New(slog.DiscardHandler))
	look := func(s topology.Snapshot, fails bool, changed pods) {
		t.Helper()
		want := maps.Clone(have)
		maps.Copy(want, changed)
		n.Applied(s)
		if err := n.look(t.Context()); (err != nil) != fails {
			t.Errorf("error %v, want one: %v", err, fails)
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Error(diff)
		}
	}
	look(topology.Snapshot{Config: topology.DefaultConfig()}, false, nil)
	look(red(""), false, nil)
	look(red("A"), false, pods{"unnoted": {Namespace: "A"}})
	if server.asked != 0 {
		t.Errorf("asked %d times about pods whose Namespace is there", server.asked)
	}
	look(red("B"), true, nil) // nobody knows: nothing is decided
	server.err = nil
	look(red("B"), false, pods{"early": {Namespace: "B", Pod: "2"}})
	asked := server.asked
	look(red("B"), false, nil)
	if server.asked != asked {
		t.Error("asked again about pods that are known to have outlived their Namespace")
	}
}
