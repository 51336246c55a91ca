package lead

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// tunnels are what a term keeps of the network configuration.
type tunnels struct {
	// judged is the revision of the record that was last looked at; port the VXLANPort in it.
	judged int64
	port   tunnel.Port
}

// keepPort puts back a VXLANPort that somebody changed under nodes whose tunnels have
// another: those that follow would reach none of the others. It changes while no
// agent reports, or to what all have that do.
func (t *term) keepPort(ctx context.Context) error {
	revision, now := t.last.Revs.Config, t.last.Config.VXLANPort
	first := t.tunnels.judged == 0
	if revision == t.tunnels.judged || !first && now == t.tunnels.port || first && now == 0 {
		t.tunnels = tunnels{judged: revision, port: now}
		return nil
	}
	live, err := t.c.cfg.Store.Statuses(ctx)
	if err != nil {
		return err
	}
	uses := map[string]tunnel.Port{}
	for ip, n := range t.last.Nodes {
		if n.Ready() {
			uses[n.Host] = live[ip].VXLANPort
		}
	}
	keep := portToKeep(first, t.tunnels.port, now, uses)
	if keep != now {
		config := t.last.Config
		config.VXLANPort = keep
		if revision, err = t.writer.PutConfig(ctx, config, revision); err != nil {
			return err
		}
		t.lastWrite = max(t.lastWrite, revision)
		t.portRefused(now, keep, others(now, uses))
	}
	t.tunnels = tunnels{judged: revision, port: keep}
	return nil
}

// portToKeep is the VXLANPort that the record is to have, where it says now and nodes
// use those ports, 0 for those that do not say. was is what it said before, which nobody
// knows at first: then only what all nodes agree on is put back, as a single one might lie.
func portToKeep(first bool, was, now tunnel.Port, uses map[string]tunnel.Port) tunnel.Port {
	all := slices.Collect(maps.Values(uses))
	switch {
	case len(others(now, uses)) == 0:
		return now
	case !first:
		return was
	case slices.Min(all) == slices.Max(all):
		return all[0] // somebody changed the record while no controller led
	}
	return now
}

// others are the nodes that say that they use another port than a record with port.
func others(port tunnel.Port, uses map[string]tunnel.Port) (nodes []string) {
	for node, used := range uses {
		if used != 0 && used != cmp.Or(port, tunnel.VXLANPort) {
			nodes = append(nodes, node)
		}
	}
	slices.Sort(nodes)
	return nodes
}

// portRefused tells people.
func (t *term) portRefused(now, keep tunnel.Port, nodes []string) {
	name := func(p tunnel.Port) string { return cmp.Or(p.String(), "none") }
	err := fmt.Errorf("VXLANPort of the network configuration became %s while node %s has its tunnels at another port, as %d of the nodes: put back to %s; it can change while no agent runs", name(now), nodes[0], len(nodes), name(keep))
	t.log.Warn("the network configuration is put back", "error", err)
	if t.follower != nil {
		t.follower.cluster.complain(err)
	}
}
