package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// foreign are the bridges, ports and devices of somebody else's on n1's Open vSwitch: a bridge with two ports, and a
// port of br0.
var foreign = []string{"other", "other0", "other1", "stray0"}

// others is somebody else who uses n1's Open vSwitch: what the database has of him, the flows of his bridge, and
// what his two machines send each other over it.
type others struct {
	*lab
	machines []probe.Endpoint
	run      *probe.Run
	// rows and flows are as they were when the run began.
	rows string
	was  []string
}

// beside has somebody else use n1's Open vSwitch from now on.
func (l *lab) beside() *others {
	l.t.Helper()
	o := &others{lab: l}
	for i := range 2 {
		port, netns := fmt.Sprintf("other%d", i), fmt.Sprintf("%s-other%d", l.Name(), i)
		ip := netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)})
		l.must(ns.Create(netns))
		l.t.Cleanup(func() {
			if err := ns.Delete(netns); err != nil {
				l.t.Error(err)
			}
		})
		l.must(ns.IP(l.t.Context(), l.Name()+"-n1",
			fmt.Sprintf("link add %s type veth peer name eth0 netns %s", port, netns), "link set "+port+" up"))
		l.must(ns.IP(l.t.Context(), netns, fmt.Sprintf("addr add %s/24 dev eth0", ip), "link set eth0 up"))
		// As for pods: the userspace datapath completes no checksums.
		l.must(ns.Do(netns, func() error { return ns.TxChecksumOff("eth0") }))
		o.machines = append(o.machines, probe.Endpoint{Namespace: "other", Name: port, Node: "n1", IP: ip, Sandbox: ns.Path(netns)})
	}
	o.configure()
	o.begin()
	return o
}

// configure makes his rows of the database.
func (o *others) configure() {
	o.t.Helper()
	datapath, err := o.OVS("n1").VSCtl(o.t.Context(), "get", "Bridge", "br0", "datapath_type")
	o.must(err)
	const his = "external_ids:whose=another"
	_, err = o.OVS("n1").VSCtl(o.t.Context(),
		"add-br", "other", "--", "set", "Bridge", "other", "datapath_type="+strings.TrimSpace(datapath), his,
		"--", "add-port", "other", "other0", "--", "set", "Interface", "other0", his,
		"--", "add-port", "other", "other1", "--", "set", "Interface", "other1", his,
		"--", "add-port", "br0", "stray0", "--", "set", "Interface", "stray0", "type=internal", his)
	o.must(err)
	// What a new port has from ovs-vswitchd comes a moment later.
	o.must(o.sync("n1"))
}

// begin begins to compare.
func (o *others) begin() {
	o.t.Helper()
	p, err := probe.Open(o.machines)
	o.must(err)
	o.eventually("machines of another bridge reach each other", 20*time.Second, func() error {
		r, err := p.Matrix(o.t.Context(), []probe.Protocol{probe.UDP}, probe.MatrixOptions{})
		if err != nil {
			return err
		}
		return r.Check(everybody)
	})
	o.rows, o.was = o.foreignRows(), o.itsFlows()
	o.run = p.Start(probe.Exactly(everybody), probe.RunOptions{Protocols: []probe.Protocol{probe.UDP}})
	o.t.Cleanup(func() {
		if err := p.Close(); err != nil {
			o.t.Error(err)
		}
	})
	o.traffic(o.run, 10)
}

// itsFlows are those of his bridge.
func (o *others) itsFlows() []string {
	o.t.Helper()
	out, err := o.OVS("n1").OFCtl(o.t.Context(), "--no-stats", "--no-names", "dump-flows", "other")
	o.must(err)
	var flows []string
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "OFPST") {
			flows = append(flows, line)
		}
	}
	return flows
}

// untouched ends the comparison: it fails the test unless his rows and flows are as they were and all his packets have
// arrived. It adds a row to the table of what faults cost.
func (o *others) untouched(fault string) {
	o.t.Helper()
	o.back(fault, "0 lost", 0)
}

// back is untouched where Open vSwitch could not forward for some time: packets may be lost then, and until it has
// recovered after each. bar is what is asked for.
func (o *others) back(fault, bar string, recovers time.Duration, outages ...span) {
	o.t.Helper()
	o.traffic(o.run, 10)
	rep := o.run.Stop()
	for _, e := range lostOutside(rep, outages, recovers) {
		o.t.Errorf("%s: lost over another bridge: %s", fault, e)
	}
	gap := longestGap(rep, 20*time.Millisecond)
	if len(outages) > 0 {
		gap = slices.Max(silences(rep, outages))
	}
	o.costs(fault+": over another bridge of the same Open vSwitch", rep.Lost(), gap, bar)
	if diff := cmp.Diff(o.rows, o.foreignRows()); diff != "" {
		o.t.Errorf("%s: the database's rows of another bridge and of foreign ports (-before +after):\n%s", fault, diff)
	}
	o.eventually("the flows of another bridge", 10*time.Second, func() error {
		if diff := cmp.Diff(o.was, o.itsFlows()); diff != "" {
			return fmt.Errorf("%s: (-before +after):\n%s", fault, diff)
		}
		return nil
	})
}

// sync returns when ovs-vswitchd has taken the database in.
func (l *lab) sync(node string) error {
	_, err := l.OVS(node).VSCtl(l.t.Context(), "set", "Open_vSwitch", ".", "external_ids:test=synced")
	return err
}

// foreignRows is all that the database has of what is somebody else's, the rows' own identities too.
func (l *lab) foreignRows() string {
	l.t.Helper()
	var all []string
	for _, table := range []string{"Bridge", "Port", "Interface"} {
		columns := map[string]string{
			"Bridge": "_uuid,name,ports,datapath_type,fail_mode,protocols,external_ids,other_config", "Port": "_uuid,name,interfaces,qos,external_ids,other_config",
			"Interface": "_uuid,name,type,options,ofport,mtu_request,external_ids,other_config",
		}[table]
		for _, name := range foreign {
			out, err := l.OVS("n1").VSCtl(l.t.Context(), "--columns="+columns, "find", table, "name="+name)
			l.must(err)
			all = append(all, out)
		}
	}
	return strings.Join(all, "\n")
}
