package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

const bridge = "br0"

// flows compares flows, groups and meters of the bridge with what the agent wants there, and
// looks whether one is of a pod that is gone.
func (l *look) flows(ctx context.Context) (err error) {
	n, err := l.Lab.Node(l.Name)
	if err != nil {
		return err
	}
	conn, err := of.Dial(ctx, filepath.Join(n.OVSRunDir, bridge+".mgmt"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	flows, err := conn.Flows(ctx, of.FlowFilter{})
	if err != nil {
		return err
	}
	groups, err := conn.Groups(ctx)
	if err != nil {
		return err
	}
	meters, err := conn.Meters(ctx)
	if err != nil {
		return err
	}
	have, passing := map[string]bool{}, map[string]bool{}
	for _, f := range flows {
		have[f.Flow.String()] = true
		// Learned ones, and those that stay while connections do.
		passing[f.Flow.String()] = f.IdleTimeout+f.HardTimeout > 0
		l.podFlow(f)
	}
	for _, g := range groups {
		have[g.String()] = true
	}
	for _, m := range meters {
		have[m.String()] = true
	}
	wanted := map[string]bool{}
	for _, w := range l.state.Flows {
		if wanted[w] = true; !have[w] {
			l.say("the bridge lacks %s", w)
		}
	}
	for h := range have {
		if !wanted[h] && !passing[h] {
			l.say("the bridge has what nobody wants: %s", h)
		}
	}
	return nil
}

// kindPod is in bits 40 to 47 of the cookies of pods' flows, and the port below: see
// PIPELINE.md, "Cookies".
const kindPod = 3

func (l *look) podFlow(f of.FlowStats) {
	if uint8(f.Cookie>>40) != kindPod {
		return
	}
	for _, at := range l.state.Attachments {
		if at.Port == uint32(f.Cookie) {
			if _, pod := l.pods[at.ContainerID]; pod {
				return
			}
		}
	}
	l.say("a flow is of port %d, which is no pod's: %s", uint32(f.Cookie), f.Flow)
}

// row is a row of the database, by column.
type row map[string]any

// rows are a table's.
func (l *look) rows(ctx context.Context, table string, columns ...string) ([]row, error) {
	out, err := l.Lab.OVS(l.Name).VSCtl(ctx, "--format=json", "--columns="+strings.Join(columns, ","), "list", table)
	if err != nil {
		return nil, err
	}
	var t struct {
		Headings []string
		Data     [][]any
	}
	if err := json.Unmarshal([]byte(out), &t); err != nil {
		return nil, fmt.Errorf("table %s: %w", table, err)
	}
	var rows []row
	for _, data := range t.Data {
		r := row{}
		for i, value := range data {
			r[t.Headings[i]] = value
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// external reads a map of the database (RFC 7047, section 5.1).
func external(value any) map[string]string {
	m := map[string]string{}
	if pair, ok := value.([]any); ok && len(pair) == 2 {
		all, _ := pair[1].([]any)
		for _, kv := range all {
			if kv, ok := kv.([]any); ok && len(kv) == 2 {
				m[fmt.Sprint(kv[0])] = fmt.Sprint(kv[1])
			}
		}
	}
	return m
}

// database compares ports of the bridge, their interfaces, and what of qualities of service
// nobody uses: those rows do not go with a port.
func (l *look) database(ctx context.Context) error {
	out, err := l.Lab.OVS(l.Name).VSCtl(ctx, "list-ports", bridge)
	if err != nil {
		return err
	}
	ports := strings.Fields(out)
	for _, name := range ports {
		if _, pod := l.hostIfs[name]; !pod && name != "tun0" && name != "vxlan0" && !l.foreign(name) {
			l.say("bridge %s has port %s, which is no pod's", bridge, name)
		}
	}
	interfaces, err := l.rows(ctx, "Interface", "name", "ofport", "error", "external_ids")
	if err != nil {
		return err
	}
	named := map[string]row{}
	for _, r := range interfaces {
		ids := external(r["external_ids"])
		name := fmt.Sprint(r["name"])
		named[name] = r
		if id := ids["k8s-ovs-container"]; id != "" && l.hostIfs[name].ContainerID != id {
			l.say("interface %s of the database is of %s (container %s), which is no pod of this node", name, ids["iface-id"], id)
		}
	}
	for hostIf, p := range l.hostIfs {
		r, there := named[hostIf]
		if !there || !slices.Contains(ports, hostIf) {
			l.say("pod %s: bridge %s has no port %s", p, bridge, hostIf)
			continue
		}
		ids := external(r["external_ids"])
		if ids["iface-id"] != p.String() || ids["k8s-ovs-address"] != p.IP.String() || ids["k8s-ovs-netns"] != p.Sandbox() {
			l.say("pod %s: interface %s has external_ids %v", p, hostIf, ids)
		}
		// The error of a try before stays: ovs-vswitchd may see the row before the device.
		if port, _ := r["ofport"].(float64); port <= 0 {
			l.say("pod %s: interface %s has no port of the switch: %v", p, hostIf, r["error"])
		}
	}
	return l.qualities(ctx)
}

// qualities compares rows of QoS and Queue.
func (l *look) qualities(ctx context.Context) error {
	ports, err := l.rows(ctx, "Port", "name", "qos")
	if err != nil {
		return err
	}
	qualities, err := l.rows(ctx, "QoS", "_uuid", "type", "queues")
	if err != nil {
		return err
	}
	queues, err := l.rows(ctx, "Queue", "_uuid")
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, r := range append(ports, qualities...) {
		for _, column := range []string{"qos", "queues"} {
			for _, id := range uuid.FindAllString(fmt.Sprint(r[column]), -1) {
				used[id] = true
			}
		}
	}
	for _, p := range ports {
		if pod, is := l.hostIfs[fmt.Sprint(p["name"])]; is && !uuid.MatchString(fmt.Sprint(p["qos"])) {
			l.say("pod %s: port %s has no QoS", pod, p["name"])
		}
	}
	for table, rows := range map[string][]row{"QoS": qualities, "Queue": queues} {
		for _, r := range rows {
			if id := uuid.FindString(fmt.Sprint(r["_uuid"])); !used[id] {
				l.say("row %s of table %s is used by nobody", id, table)
			}
		}
	}
	return nil
}

var uuid = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// connections looks for those of addresses of the node's subnet that no pod has: whoever gets the
// address next would inherit them.
func (l *look) connections(ctx context.Context) error {
	if !l.subnet.IsValid() {
		return nil
	}
	kernel, err := l.Lab.NodeExec(ctx, l.Name, "conntrack", "-L")
	if err != nil {
		return err
	}
	l.tracked("the node's", kernel)
	tracked, err := l.Lab.OVS(l.Name).AppCtl(ctx, "dpctl/dump-conntrack", fmt.Sprintf("zone=%d", policyZone))
	if err != nil {
		return err
	}
	l.tracked("policies'", tracked)
	return nil
}

// policyZone is the zone of connections of pods that policies select.
const policyZone = 65519

// address finds the addresses that a connection is from and to.
var address = regexp.MustCompile(`\b(?:src|dst)=([0-9.]+)`)

func (l *look) tracked(whose, text string) {
	first := l.subnet.Addr()
	for line := range strings.Lines(text) {
		for _, m := range address.FindAllStringSubmatch(line, -1) {
			a, err := netip.ParseAddr(m[1])
			if _, pod := l.addresses[a]; err != nil || pod || !l.subnet.Contains(a) || a == first || a == first.Next() || !l.subnet.Contains(a.Next()) {
				continue // the first two addresses, and the last, are the node's
			}
			l.say("connections of %s, which no pod has, are among %s: %s", a, whose, strings.TrimSpace(line))
			break
		}
	}
}
