package lead

import (
	"context"

	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

// dropLeft deletes the records that nodes which went have left: see [store.Leadership.DropLeft]. Some are their agents',
// which leave them behind, since pods run on without their agent. It looks when a node went, and when a term begins. One of
// a node that went before it was seen stays until then: it counts for nobody.
func (t *term) dropLeft(ctx context.Context) error {
	present := nodeKeys(t.last)
	gone := t.nodes == nil
	for key := range t.nodes {
		gone = gone || !present[key]
	}
	if gone {
		dropped, err := t.writer.DropLeft(ctx)
		for _, key := range dropped {
			t.log.Info("a node went, and what it left was deleted", "key", key)
		}
		if err != nil {
			return err
		}
	}
	t.nodes = present
	return nil
}

// nodeKeys are the last parts of the keys of all node records.
func nodeKeys(r store.Records) map[string]bool {
	keys := map[string]bool{}
	for ip := range r.Nodes {
		keys[ip.String()] = true
	}
	for _, raw := range r.Revs.Invalid {
		if raw.Node {
			keys[raw.Key] = true
		}
	}
	return keys
}
