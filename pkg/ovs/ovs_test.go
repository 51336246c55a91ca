package ovs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/ovn-org/libovsdb/client"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns/nstest"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// start gives a private Open vSwitch in a namespace of its own, and a client.
func start(t testing.TB) (*Client, *ovstest.OVS, string) {
	t.Helper()
	name := nstest.New(t)
	o := ovstest.StartIn(t, ns.Path(name))
	return connect(t, o), o, name
}

func connect(t testing.TB, o *ovstest.OVS) *Client {
	t.Helper()
	c, err := Connect(within(t), Config{Endpoint: "unix:" + o.DB})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func bridge(t testing.TB, c *Client, name string) {
	t.Helper()
	if _, err := c.EnsureBridge(within(t), BridgeSpec{Name: name, DatapathType: DatapathNetdev, FailMode: FailSecure}); err != nil {
		t.Fatal(err)
	}
}

func vsctl(o *ovstest.OVS, args ...string) string { return strings.TrimSpace(o.VSCtl(args...)) }

// until waits for a condition on the wake-ups of the client, as the agent does.
func until(t testing.TB, c *Client, what string, ok func() bool) {
	t.Helper()
	ctx := within(t)
	for !ok() {
		select {
		case <-c.Changes():
		case <-ctx.Done():
			t.Fatalf("%s: not so, and no change is reported", what)
		}
	}
}

func TestConnectNamesTheSocket(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := Connect(ctx, Config{Endpoint: "unix:/nonexistent/db.sock"})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/db.sock") || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("error %v does not name the socket and what is wrong with it", err)
	}
	if _, err := Connect(ctx, Config{Endpoint: "tcp:127.0.0.1:6640"}); err == nil || !strings.Contains(err.Error(), "unix:") {
		t.Errorf("endpoint tcp: error %v does not say which form is right", err)
	}
}

func TestEnsureBridge(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	spec := BridgeSpec{
		Name: "br0", DatapathType: DatapathNetdev, FailMode: FailSecure, LocalMTU: 1400, Protocols: []string{"OpenFlow14", "OpenFlow13"}, NoFlowLimits: true,
		MAC:         net.HardwareAddr{0x0a, 0x58, 1, 2, 3, 4},
		ExternalIDs: map[string]string{"owner": "k8s-ovs"}, OtherConfig: map[string]string{"disable-in-band": "true"},
	}
	if changed, err := c.EnsureBridge(ctx, spec); err != nil || !changed {
		t.Fatalf("create: changed %t, %v", changed, err)
	}
	if err := c.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if changed, err := c.EnsureBridge(ctx, spec); err != nil || changed {
		t.Errorf("repeated: changed %t, %v; want no change", changed, err)
	}
	if got := vsctl(o, "get", "Bridge", "br0", "protocols"); got != "[]" {
		t.Errorf("a new bridge speaks %s only", got)
	}
	uuid := vsctl(o, "get", "Bridge", "br0", "_uuid")
	o.VSCtl("--", "--id=@t", "create", "Flow_Table", "flow_limit=1", "--", "set", "Bridge", "br0", "flow_tables:7=@t", "--", "set", "Bridge", "br0", "fail_mode=standalone", "external_ids:foreign=kept", "external_ids:owner=other", "stp_enable=true", "protocols=OpenFlow15")
	until(t, c, "the foreign change is seen", func() bool { b, _ := c.Bridge("br0"); return b.ExternalIDs["foreign"] == "kept" })
	if changed, err := c.EnsureBridge(ctx, spec); err != nil || !changed {
		t.Errorf("mend: changed %t, %v; want a change", changed, err)
	}
	want := Bridge{
		Name: "br0", DatapathType: "netdev", FailMode: "secure", DatapathID: "00000a5801020304", Protocols: []string{"OpenFlow13", "OpenFlow14", "OpenFlow15"},
		OtherConfig: map[string]string{"hwaddr": "0a:58:01:02:03:04", "disable-in-band": "true"},
		ExternalIDs: map[string]string{"owner": "k8s-ovs", "foreign": "kept"},
	}
	until(t, c, "datapath id", func() bool { b, _ := c.Bridge("br0"); return b.DatapathID == want.DatapathID })
	got, _ := c.Bridge("br0")
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("bridge (-want +got):\n%s", d)
	}
	for column, want := range map[string]string{"_uuid": uuid, "stp_enable": "true", "flow_tables": "{}"} {
		if got := vsctl(o, "get", "Bridge", "br0", column); got != want {
			t.Errorf("%s is %s, want %s: the bridge was made anew, or a foreign column written", column, got, want)
		}
	}
	local, _ := c.Port("br0")
	if local.MTU != 1400 || local.MAC.String() != "0a:58:01:02:03:04" {
		t.Errorf("local port has MTU %d and MAC %s, want 1400 and 0a:58:01:02:03:04", local.MTU, local.MAC)
	}
}

// TestMendPorts: what somebody changed of ports is put right, of those that are there and of no other bridge's.
func TestMendPorts(t *testing.T) {
	c, o, _ := start(t)
	bridge(t, c, "br0")
	bridge(t, c, "br1")
	var args []string
	for _, name := range []string{"p0", "p1", "p2"} {
		args = append(args, "--", "add-port", map[bool]string{true: "br1", false: "br0"}[name == "p2"], name, "--", "set", "Interface", name,
			"ingress_policing_rate=10", "ingress_policing_kpkts_rate=20", "mtu_request=600", "type=vxlan", "options:remote_ip=192.0.2.9", "external_ids:foreign=kept", "external_ids:gone=1")
	}
	o.VSCtl(append(args, "--", "set", "Interface", "p1", "ingress_policing_rate=0", "type=system", "--", "clear", "Interface", "p1", "external_ids")...)
	until(t, c, "the ports are seen", func() bool {
		p, _ := c.Port("p2")
		q, _ := c.Port("p1")
		return p.Policed && q.Policed && p.Type == "vxlan" && q.Type == ""
	})
	var specs []PortSpec
	for _, name := range []string{"p0", "p1", "p2", "none"} {
		specs = append(specs, PortSpec{Name: name, NotPoliced: true, Plain: true, ExternalIDs: map[string]string{"owner": "k8s-ovs", "gone": ""}})
	}
	for range 2 {
		if err := c.MendPorts(within(t), "br0", specs); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{
			"p0": `0 0 [] "" {} {foreign=kept, owner=k8s-ovs}`, "p1": `0 0 [] system {} {owner=k8s-ovs}`,
			"p2": `10 20 600 vxlan {remote_ip="192.0.2.9"} {foreign=kept, gone="1"}`,
		} {
			got := vsctl(o, "get", "Interface", name, "ingress_policing_rate", "ingress_policing_kpkts_rate", "mtu_request", "type", "options", "external_ids")
			if got = strings.ReplaceAll(got, "\n", " "); got != want {
				t.Errorf("%s has %s, want %s", name, got, want)
			}
		}
	}
	if err := c.MendPorts(within(t), "none", specs); !errors.Is(err, ErrNoBridge) {
		t.Errorf("no such bridge: %v", err)
	}
}

func TestSetExternalIDs(t *testing.T) {
	c, o, _ := start(t)
	bridge(t, c, "br0")
	o.VSCtl("set", "Bridge", "br0", "external_ids:a=1", "external_ids:b=2", "external_ids:c=3")
	until(t, c, "the keys are seen", func() bool { b, _ := c.Bridge("br0"); return len(b.ExternalIDs) == 3 })
	if err := c.SetExternalIDs(within(t), "br0", map[string]string{"a": "", "b": "20", "d": "4", "e": ""}); err != nil {
		t.Fatal(err)
	}
	if got, want := vsctl(o, "get", "Bridge", "br0", "external_ids"), `{b="20", c="3", d="4"}`; got != want {
		t.Errorf("external_ids %s, want %s", got, want)
	}
	if err := c.SetExternalIDs(within(t), "none", map[string]string{"a": "1"}); !errors.Is(err, ErrNoBridge) {
		t.Errorf("no such bridge: %v", err)
	}
}

func TestPortLifecycle(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	bridge(t, c, "br0")
	spec := PortSpec{
		Name: "tun0", Type: "internal", OfportRequest: 42, MTURequest: 1450, MAC: net.HardwareAddr{0x0a, 0x58, 10, 0, 0, 1},
		ExternalIDs: map[string]string{"attachment": "x/eth0"},
	}
	if changed, err := c.EnsurePort(ctx, "br0", spec); err != nil || !changed {
		t.Fatalf("create: changed %t, %v", changed, err)
	}
	if n, err := c.WaitOfport(ctx, "tun0"); err != nil || n != 42 {
		t.Fatalf("ofport %d, %v; want 42", n, err)
	}
	if changed, err := c.EnsurePort(ctx, "br0", spec); err != nil || changed {
		t.Errorf("repeated: changed %t, %v", changed, err)
	}
	want := []Port{{
		Bridge: "br0", Name: "tun0", Type: "internal", Ofport: 42, OfportRequest: 42, MTU: 1450, MTURequest: 1450, MAC: spec.MAC,
		ExternalIDs: spec.ExternalIDs,
	}}
	settled := func() bool {
		p, ok := c.Port("tun0")
		return ok && p.MTU == 1450 && p.MAC.String() == "0a:58:0a:00:00:01" && p.Ifindex > 0
	}
	until(t, c, "tun0 is settled", settled)
	got, err := c.Ports("br0")
	if err != nil || len(got) != 2 || got[0].Name != "br0" {
		t.Fatalf("ports %v, %v; want br0 and tun0", got, err)
	}
	want[0].Ifindex, want[0].Up = got[1].Ifindex, got[1].Up
	if d := cmp.Diff(want, got[1:], cmpopts.EquateEmpty()); d != "" {
		t.Errorf("ports (-want +got):\n%s", d)
	}
	spec.MTURequest, spec.ExternalIDs = 1400, map[string]string{"attachment": "y/eth0"}
	if changed, err := c.EnsurePort(ctx, "br0", spec); err != nil || !changed {
		t.Errorf("mend: changed %t, %v", changed, err)
	}
	until(t, c, "MTU 1400", func() bool { p, _ := c.Port("tun0"); return p.MTU == 1400 && p.ExternalIDs["attachment"] == "y/eth0" })
	bridge(t, c, "br1")
	if _, err := c.EnsurePort(ctx, "br1", spec); err == nil || !strings.Contains(err.Error(), "bridge br0") {
		t.Errorf("on another bridge: error %v does not name it", err)
	}
	if err := c.DeletePort(ctx, "br1", "tun0"); err != nil || !strings.Contains(o.VSCtl("list-ports", "br0"), "tun0") {
		t.Errorf("deleting from the wrong bridge: %v; the port must stay", err)
	}
	for range 2 {
		if err := c.DeletePort(ctx, "br0", "tun0"); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if _, ok := c.Port("tun0"); ok || vsctl(o, "list-ports", "br0") != "" {
		t.Errorf("tun0 is still there")
	}
}

func TestPortErrors(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	bridge(t, c, "br0")
	if err := c.AddPort(ctx, "none", PortSpec{Name: "x"}); !errors.Is(err, ErrNoBridge) {
		t.Errorf("no such bridge: %v", err)
	}
	if err := c.AddPort(ctx, "br0", PortSpec{Name: "a-name-that-is-too-long"}); err == nil {
		t.Error("a name of 23 characters was taken")
	}
	if err := c.AddPort(ctx, "br0", PortSpec{Name: "nodevice"}); err != nil {
		t.Fatal(err)
	}
	_, err := c.WaitOfport(ctx, "nodevice")
	var refused *PortError
	if !errors.As(err, &refused) || !strings.Contains(refused.Text, "No such device") {
		t.Errorf("port without a device: %v; want Open vSwitch's own text", err)
	}
	if p, ok := c.Port("nodevice"); !ok || !strings.Contains(p.Error, "No such device") {
		t.Errorf("%+v; want Open vSwitch's own text", p)
	}
	// Of a port that was taken in the text is that of an attempt before.
	if err := c.AddPort(ctx, "br0", PortSpec{Name: "taken", Type: "internal"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitOfport(ctx, "taken"); err != nil {
		t.Fatal(err)
	}
	o.VSCtl("set", "Interface", "taken", "error=stale", "external_ids:set=after")
	until(t, c, "what was set by hand is seen", func() bool { p, _ := c.Port("taken"); return p.ExternalIDs["set"] == "after" })
	if p, _ := c.Port("taken"); p.Error != "" || p.Ofport == 0 {
		t.Errorf("%+v; want a number and no error", p)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := c.WaitOfport(short, "absent"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "not in the database") {
		t.Errorf("port that is not there: %v", err)
	}
	if err := c.AddPort(ctx, "br0", PortSpec{Name: "bad", OfportRequest: 70000}); err == nil || !strings.Contains(err.Error(), "bad") {
		t.Errorf("ofport_request 70000: %v; want the server's refusal, naming the port", err)
	}
}

// A port whose device was made anew under the same name must carry packets
// of the new device, not be taken for the old one.
func TestReplacedPortIsTheNewDevice(t *testing.T) {
	c, o, space := start(t)
	ctx := within(t)
	if _, err := c.EnsureBridge(ctx, BridgeSpec{Name: "br0", DatapathType: DatapathNetdev, FailMode: FailStandalone}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitOfport(ctx, "br0"); err != nil {
		t.Fatal(err)
	}
	if err := ns.IP(ctx, space, "addr add 10.9.0.1/24 dev br0", "link set br0 up"); err != nil {
		t.Fatal(err)
	}
	for round := range 4 {
		pod := space + "-pod" + fmt.Sprint(round)
		if err := ns.Create(pod); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = ns.Delete(pod) }()
		if round > 0 {
			if err := ns.IP(ctx, space, "link del v0"); err != nil {
				t.Fatal(err)
			}
		}
		// A MAC that stays spares waiting for the learning switch to forget.
		if err := ns.IP(ctx, space, "link add v0 type veth peer name eth0 address 0a:58:0a:09:00:02 netns "+pod, "link set v0 up"); err != nil {
			t.Fatal(err)
		}
		if err := ns.IP(ctx, pod, "link set eth0 up", "addr add 10.9.0.2/24 dev eth0"); err != nil {
			t.Fatal(err)
		}
		if err := c.AddPort(ctx, "br0", PortSpec{Name: "v0", ExternalIDs: map[string]string{"pod": pod}}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := c.WaitOfport(ctx, "v0"); err != nil {
			t.Fatal(err)
		}
		waited := time.Since(began)
		if p, _ := c.Port("v0"); p.ExternalIDs["pod"] != pod || p.QoS != nil {
			t.Errorf("round %d: port %+v keeps something of the old one", round, p)
		}
		if out, err := exec.Command("ip", "netns", "exec", pod, "ping", "-c3", "-i0.2", "-W1", "10.9.0.1").CombinedOutput(); err != nil {
			t.Errorf("round %d: no packet passes the port of the new device: %v: %s", round, err, out)
		}
		t.Logf("round %d: WaitOfport %v", round, waited)
		shape(t, c, o, "v0", "type=linux-noop")
	}
}

// Two writers must not lose each other's ports.
func TestPortsOfTwoWriters(t *testing.T) {
	c, o, _ := start(t)
	other := connect(t, o)
	bridge(t, c, "br0")
	until(t, other, "br0", func() bool { _, ok := other.Bridge("br0"); return ok })
	var wg sync.WaitGroup
	for i, writer := range []*Client{c, other} {
		for j := range 20 {
			wg.Go(func() {
				name := fmt.Sprintf("p%d-%d", i, j)
				if err := writer.AddPort(within(t), "br0", PortSpec{Name: name, Type: "internal"}); err != nil {
					t.Error(err)
				}
				if _, err := writer.WaitOfport(within(t), name); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Go(func() {
		for j := range 10 {
			if out, err := exec.Command("ovs-vsctl", "--db=unix:"+o.DB, "add-port", "br0", fmt.Sprint("by-hand", j), "--", "set", "Interface", fmt.Sprint("by-hand", j), "type=internal").CombinedOutput(); err != nil {
				t.Errorf("ovs-vsctl: %v: %s", err, out)
			}
		}
	})
	wg.Wait()
	until(t, c, "50 ports and the local one", func() bool { ports, _ := c.Ports("br0"); return len(ports) == 51 })
	if n := len(strings.Fields(o.VSCtl("list-ports", "br0"))); n != 50 {
		t.Errorf("%d ports, want 50", n)
	}
}

// A QoS that two ports share (made by hand) stays as long as one has it.
func TestSharedQoSStays(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	bridge(t, c, "br0")
	o.VSCtl("add-port", "br0", "a", "--", "set", "Interface", "a", "type=internal",
		"--", "add-port", "br0", "b", "--", "set", "Interface", "b", "type=internal",
		"--", "set", "Port", "a", "qos=@q", "--", "set", "Port", "b", "qos=@q", "--", "--id=@q", "create", "QoS", "type=linux-noop")
	until(t, c, "both ports have it", func() bool { a, _ := c.Port("a"); b, _ := c.Port("b"); return a.QoS != nil && b.QoS != nil })
	for _, step := range []struct {
		port string
		left int
	}{{"a", 1}, {"b", 0}} {
		if err := c.DeletePort(ctx, "br0", step.port); err != nil {
			t.Fatal(err)
		}
		if n := len(strings.Fields(o.VSCtl("--columns=_uuid", "--bare", "list", "QoS"))); n != step.left {
			t.Errorf("after %s: %d QoS rows, want %d", step.port, n, step.left)
		}
	}
}

// Statistics are written every few seconds for each port; they must not wake anyone.
func TestMonitorAsksForWhatIsUsed(t *testing.T) {
	dbModel, err := clientModel(&rowInterface{})
	if err != nil {
		t.Fatal(err)
	}
	lib, err := client.NewOVSDBClient(dbModel)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, table := range monitor(lib, &rowInterface{}).Tables {
		got[table.Table] = len(table.Fields) // with none libovsdb asks for all columns
		for _, f := range table.Fields {
			if f == "" || strings.Contains(f, "statistics") || f == "status" || f == "rstp_status" {
				t.Errorf("table %s: column %q is monitored", table.Table, f)
			}
		}
	}
	want := map[string]int{"Open_vSwitch": 9, "Bridge": 13, "Port": 3, "Interface": 17, "QoS": 4, "Queue": 1, "Mirror": 3}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("columns by table (-want +got):\n%s", d)
	}
}

// shape gives a port a QoS of its own by hand, as a release before did, and waits until c
// has seen it. columns are those of the QoS row.
func shape(t testing.TB, c *Client, o *ovstest.OVS, port string, columns ...string) {
	t.Helper()
	uuid := vsctl(o, append([]string{"--", "set", "Port", port, "qos=@qos", "--", "--id=@qos", "create", "QoS"}, columns...)...)
	uuid, _, _ = strings.Cut(uuid, "\n")
	until(t, c, "QoS of "+port, func() bool {
		s, err := c.session()
		if err != nil {
			return false
		}
		row, err := s.portByName(port)
		return err == nil && row != nil && deref(row.QoS) == uuid && s.qosOf(row) != nil
	})
}

// TestQoSRowsGo: a port's own QoS and queues go with it, those that others use stay.
func TestQoSRowsGo(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	bridge(t, c, "br0")
	rows := func() [2]int {
		return [2]int{len(strings.Fields(o.VSCtl("--columns=_uuid", "--bare", "list", "QoS"))), len(strings.Fields(o.VSCtl("--columns=_uuid", "--bare", "list", "Queue")))}
	}
	remove := func(port string, want [2]int) {
		t.Helper()
		if err := c.DeletePort(ctx, "br0", port); err != nil {
			t.Fatal(err)
		}
		if got := rows(); got != want {
			t.Errorf("without %s: QoS and Queue rows %v, want %v", port, got, want)
		}
	}
	for _, p := range []string{"a", "b", "c"} {
		if err := c.AddPort(ctx, "br0", PortSpec{Name: p, Type: "internal"}); err != nil {
			t.Fatal(err)
		}
	}
	shape(t, c, o, "a", "type=linux-htb", "other_config:max-rate=1000000", "queues:0=@one", "queues:1=@two",
		"--", "--id=@one", "create", "Queue", "other_config:max-rate=1000000", "--", "--id=@two", "create", "Queue", "other_config:min-rate=1")
	want := &QoS{Type: "linux-htb", OtherConfig: map[string]string{"max-rate": "1000000"}, Queues: map[int]map[string]string{0: {"max-rate": "1000000"}, 1: {"min-rate": "1"}}}
	if p, _ := c.Port("a"); !cmp.Equal(p.QoS, want) {
		t.Errorf("QoS of a (-want +got):\n%s", cmp.Diff(want, p.QoS))
	}
	// b has a queue of a's, c all of b's.
	queue := strings.Trim(vsctl(o, "get", "QoS", vsctl(o, "get", "Port", "a", "qos"), "queues:0"), `"`)
	shape(t, c, o, "b", "type=linux-htb", "queues:0="+queue)
	qos := vsctl(o, "get", "Port", "b", "qos")
	o.VSCtl("set", "Port", "c", "qos="+qos)
	until(t, c, "QoS of c", func() bool { p, ok := c.Port("c"); return ok && p.QoS != nil })
	remove("a", [2]int{1, 1})
	remove("b", [2]int{1, 1})
	remove("c", [2]int{0, 0})
}
