package main

import (
	"context"
	"encoding/json"
	"fmt"

	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// records writes and reads etcd as a person with etcdctl would.
type records struct{ *clientv3.Client }

func (b *bench) records() (records, error) {
	c, err := b.lab.Etcd()
	return records{c}, err
}

// key of a record: kind is "netnamespaces", "subnets" or "status".
func key(kind, name string) string {
	return strings.Join([]string{netlab.EtcdPrefix, topology.DefaultConfig().Name, kind, name}, "/")
}

// put writes a record and returns the revision.
func (r records) put(ctx context.Context, kind, name string, value any) (int64, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return 0, err
	}
	resp, err := r.Put(ctx, key(kind, name), string(data))
	if err != nil {
		return 0, fmt.Errorf("write %s %s: %w", kind, name, err)
	}
	return resp.Header.Revision, nil
}

// namespaces are all namespace records with their revisions.
func (r records) namespaces(ctx context.Context) (map[string]topology.Namespace, map[string]int64, error) {
	resp, err := r.Get(ctx, key("netnamespaces", ""), clientv3.WithPrefix())
	if err != nil {
		return nil, nil, err
	}
	list, revisions := map[string]topology.Namespace{}, map[string]int64{}
	for _, kv := range resp.Kvs {
		name := strings.TrimPrefix(string(kv.Key), key("netnamespaces", ""))
		n, err := topology.ParseNamespace(name, kv.Value)
		if err != nil {
			return nil, nil, err
		}
		list[name], revisions[name] = n, kv.ModRevision
	}
	return list, revisions, nil
}

// waitApplied waits until ok says of the namespaces' netIDs that they are as
// asked, and n1 has the newest of their records in its flows.
func (r records) waitApplied(ctx context.Context, node netlab.Node, names []string, ok func(ids map[netid.ID]int) bool) error {
	return wait(ctx, fmt.Sprintf("%s has the new netIDs in its flows", node.Name), func() (bool, error) {
		list, revisions, err := r.namespaces(ctx)
		if err != nil {
			return false, err
		}
		ids, newest := map[netid.ID]int{}, int64(0)
		for _, name := range names {
			if n := list[name]; n.Effective == nil || n.Action != topology.None {
				return false, nil
			}
			ids[*list[name].Effective]++
			newest = max(newest, revisions[name])
		}
		if !ok(ids) {
			return false, nil
		}
		applied, err := r.applied(ctx, node)
		return applied >= newest, err
	})
}

// applied is the revision that a node has in its flows; 0 while it says nothing.
func (r records) applied(ctx context.Context, node netlab.Node) (int64, error) {
	resp, err := r.Get(ctx, key("status", node.VTEP.String()))
	if err != nil || len(resp.Kvs) == 0 {
		return 0, err
	}
	var st topology.NodeStatus
	err = json.Unmarshal(resp.Kvs[0].Value, &st)
	return st.Revision, err
}

// waitLimit bounds every wait for something that must come about.
const waitLimit = 30 * time.Second

// wait asks until ok says yes.
func wait(ctx context.Context, what string, ok func() (bool, error)) error {
	return waitEvery(ctx, 20*time.Millisecond, what, ok)
}

// waitEvery is wait where asking costs something.
func waitEvery(ctx context.Context, every time.Duration, what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, waitLimit, fmt.Errorf("not so after %s", waitLimit))
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
}
