package lead

import (
	"encoding/json"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/subnet"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/tenant"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

type (
	freedIDs     = []netid.ID
	freedSubnets = []netip.Prefix
)

// tenantRecords are the records below netnamespaces/, readable or not.
func tenantRecords(r store.Records) []tenant.Record {
	out := make([]tenant.Record, 0, len(r.Namespaces))
	for key, n := range r.Namespaces {
		rev := r.Revs.Namespaces[key]
		out = append(out, tenant.Record{Key: key, Namespace: n, Mod: rev.Mod, Create: rev.Create})
	}
	for name, raw := range r.Revs.Invalid {
		if raw.Node {
			continue
		}
		rec := tenant.Record{Key: raw.Key, Mod: raw.Rev.Mod, Create: raw.Rev.Create, Unreadable: r.Invalid[name]}
		rec.Decoded = json.Unmarshal(raw.Value, &rec.Namespace) == nil
		out = append(out, rec)
	}
	return out
}

// nodeRecords are the records below subnets/, readable or not.
func nodeRecords(r store.Records) []subnet.Record {
	out := make([]subnet.Record, 0, len(r.Nodes))
	for ip, n := range r.Nodes {
		rev := r.Revs.Nodes[ip]
		out = append(out, subnet.Record{Key: ip.String(), Node: n, Mod: rev.Mod, Create: rev.Create})
	}
	for name, raw := range r.Revs.Invalid {
		if !raw.Node {
			continue
		}
		rec := subnet.Record{Key: raw.Key, Mod: raw.Rev.Mod, Create: raw.Rev.Create, Unreadable: r.Invalid[name]}
		rec.Decoded = json.Unmarshal(raw.Value, &rec.Node) == nil
		out = append(out, rec)
	}
	return out
}
