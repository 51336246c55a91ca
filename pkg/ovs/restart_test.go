package ovs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDatabaseRestart(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	bridge(t, c, "br0")
	o.KillOVSDB()
	until(t, c, "the loss is noticed", func() bool { return !c.Connected() })
	if _, err := c.Ports("br0"); !errors.Is(err, ErrDisconnected) {
		t.Errorf("Ports while disconnected: %v", err)
	}
	if err := c.AddPort(ctx, "br0", PortSpec{Name: "x"}); !errors.Is(err, ErrDisconnected) {
		t.Errorf("AddPort while disconnected: %v", err)
	}
	// A waiter lives through it.
	type answer struct {
		n   uint32
		err error
	}
	waited := make(chan answer, 1)
	go func() {
		n, err := c.WaitOfport(ctx, "late")
		waited <- answer{n, err}
	}()
	o.StartOVSDB()
	began := time.Now()
	if err := c.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("reconnected %v after the server answered", time.Since(began))
	if d := time.Since(began); d > time.Second {
		t.Errorf("reconnecting took %v", d)
	}
	if _, ok := c.Bridge("br0"); !ok {
		t.Error("br0 is not there after reconnecting: the database was not read again")
	}
	if err := c.AddPort(ctx, "br0", PortSpec{Name: "late", Type: "internal"}); err != nil {
		t.Fatal(err)
	}
	if a := <-waited; a.err != nil || a.n == 0 {
		t.Errorf("the waiter got %d, %v", a.n, a.err)
	}
}

// TestInit: a database that is lost while all run is made one that can be used, once.
func TestInit(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	bridge(t, c, "br0")
	sessions := c.Sessions()
	o.LoseDatabase()
	if err := c.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	until(t, c, "another connection is counted", func() bool { return c.Sessions() > sessions })
	if _, err := c.EnsureBridge(ctx, BridgeSpec{Name: "br0", DatapathType: DatapathNetdev}); err == nil || !strings.Contains(err.Error(), "Open_vSwitch row") {
		t.Errorf("a bridge in an empty database: %v", err)
	}
	for range 2 {
		if err := c.Init(ctx); err != nil {
			t.Fatal(err)
		}
		until(t, c, "the row is there", func() bool { s, err := c.session(); return err == nil && s.ovs() != nil })
	}
	bridge(t, c, "br0")
	if err := c.Sync(ctx); err != nil {
		t.Error(err)
	}
	if n := len(strings.Fields(vsctl(o, "--bare", "--columns=_uuid", "list", "Open_vSwitch"))); n != 1 {
		t.Errorf("%d rows", n)
	}
}

// TestDiskFull: what cannot be written down is told apart, and looked at again until it can.
func TestDiskFull(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	bridge(t, c, "br0")
	free := o.FillDisk()
	if err := c.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	var err error
	var full *StorageError
	for n := 0; err == nil && n < 1000; n++ { // the last page of the file has room
		_, err = c.EnsureBridge(ctx, BridgeSpec{Name: "br0", ExternalIDs: map[string]string{"x": fmt.Sprint(n)}})
	}
	if !errors.As(err, &full) || !strings.Contains(err.Error(), "conf.db") {
		t.Fatalf("on a full disk: %v", err)
	}
	if err := c.Writable(ctx); !errors.As(err, &full) {
		t.Errorf("it can be written: %v", err)
	}
	free()
	for range 2 {
		if err := c.Writable(ctx); err != nil {
			t.Errorf("there is room: %v", err)
		}
	}
	bridge(t, c, "br1")
}

func TestVswitchdRestart(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	bridge(t, c, "br0")
	if err := c.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	o.KillVswitchd()
	if !c.Connected() {
		t.Error("the database is there, but the client says disconnected")
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := c.Sync(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Sync without ovs-vswitchd: %v", err)
	}
	if i := c.Info(); i.CurCfg >= i.NextCfg {
		t.Errorf("cur_cfg %d is not behind next_cfg %d", i.CurCfg, i.NextCfg)
	}
	if err := c.AddPort(ctx, "br0", PortSpec{Name: "p", Type: "internal"}); err != nil {
		t.Fatal(err)
	}
	o.StartVswitchd()
	if n, err := c.WaitOfport(ctx, "p"); err != nil || n == 0 {
		t.Errorf("ofport %d, %v after the restart", n, err)
	}
	until(t, c, "cur_cfg has caught up", func() bool { i := c.Info(); return i.CurCfg >= i.NextCfg })
	if i := c.Info(); len(i.DatapathTypes) == 0 || len(i.IfaceTypes) == 0 {
		t.Errorf("info %+v has no types", i)
	}
}

func TestCloseWhileConnectingAgain(t *testing.T) {
	c, o, _ := start(t)
	o.KillOVSDB()
	until(t, c, "the loss is noticed", func() bool { return !c.Connected() })
	done := make(chan struct{})
	go func() { c.Close(); close(done) }()
	select {
	case <-done:
	case <-within(t).Done():
		t.Fatal("Close does not return while the server is away")
	}
	if err := c.WaitConnected(within(t)); !errors.Is(err, ErrDisconnected) {
		t.Errorf("WaitConnected after Close: %v", err)
	}
}

// TestSchemaBefore: a database of Open vSwitch before 2.16, whose schema has no rates of packets, is served as any other.
func TestSchemaBefore(t *testing.T) {
	dir, have := t.TempDir(), cmp.Or(os.Getenv("OVS_PKGDATADIR"), "/usr/share/openvswitch")
	data, err := os.ReadFile(filepath.Join(have, "vswitch.ovsschema"))
	if err != nil {
		t.Skipf("no schema to make an earlier one of: %v", err)
	}
	var schema struct {
		Name, Version string
		Tables        map[string]map[string]any
	}
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	columns := schema.Tables[tableInterface]["columns"].(map[string]any)
	for _, column := range []string{packetRate, "ingress_policing_kpkts_burst"} {
		delete(columns, column)
	}
	data, err = json.Marshal(map[string]any{"name": schema.Name, "version": "8.2.0", "tables": schema.Tables})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "vswitch.ovsschema"), data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("OVS_PKGDATADIR", dir)
	c, o, _ := start(t)
	bridge(t, c, "br0")
	if err := c.AddPort(within(t), "br0", PortSpec{Name: "p0", Type: "internal"}); err != nil {
		t.Fatal(err)
	}
	if n, err := c.WaitOfport(within(t), "p0"); err != nil || n == 0 {
		t.Errorf("the port has number %d, %v", n, err)
	}
	if ports, err := c.PortsOfType("internal"); err != nil || len(ports) != 2 { // the bridge's own, and that
		t.Errorf("ports %+v, %v", ports, err)
	}
	o.VSCtl("set", "Interface", "p0", "ingress_policing_rate=10")
	until(t, c, "the rate is seen", func() bool { p, _ := c.Port("p0"); return p.Policed })
	if err := c.MendPorts(within(t), "br0", []PortSpec{{Name: "p0", Type: "internal", NotPoliced: true}}); err != nil {
		t.Fatal(err)
	}
	if rate := vsctl(o, "get", "Interface", "p0", "ingress_policing_rate"); rate != "0" {
		t.Errorf("the rate is %s", rate)
	}
}
