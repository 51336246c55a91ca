package flowstore_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// Another area, whose kinds are two, and which has the bridge's meters.
const otherCookie = 0x10 << 40

var other = flowstore.Area{
	Name: "others", Cookie: otherCookie, Mask: otherCookie, Kinds: []flowstore.Kind{"one", "two"}, Groups: true, Meters: true, AtOnce: 4096,
}

// bridge is a real bridge with a store. It stands between both.
type bridge struct {
	*of.Conn
	*ovstest.OVS
	t     *testing.T
	store *flowstore.Store
	areas []flowstore.Area
	now   time.Time

	// reading is held by who keeps the connection from reading what others changed.
	reading sync.Mutex
	// mu is for when the store runs beside the test.
	mu       sync.Mutex
	looks    int
	bundles  int
	repaired map[flowstore.Kind]int
	warnings []string
	// sent is the newest bundle as text.
	sent []string
	// fail, if not nil, is asked before a bundle is sent and after it was carried out.
	fail func(carriedOut bool) error
}

func newBridge(t *testing.T, areas ...flowstore.Area) *bridge {
	t.Helper()
	b := &bridge{OVS: ovstest.Start(t), t: t, areas: areas, now: time.Unix(0, 0)}
	var err error
	if b.Conn, err = of.Dial(t.Context(), b.AddBridge("br0", "dummy")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Conn.Close() })
	b.restart()
	return b
}

// restart makes a store that knows nothing of what another one wrote.
func (b *bridge) restart() {
	b.store = flowstore.New(flowstore.Config{
		Areas: b.areas, Observer: b, Watched: []uint8{1, 60}, Now: func() time.Time { return b.now }, Logger: slog.New(warner{b}),
	})
	b.store.Connect(b)
	b.repaired = map[flowstore.Kind]int{}
}

// warner keeps the warnings that are logged.
type warner struct{ b *bridge }

func (warner) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (w warner) WithAttrs([]slog.Attr) slog.Handler         { return w }
func (w warner) WithGroup(string) slog.Handler              { return w }
func (w warner) Handle(_ context.Context, r slog.Record) error {
	w.b.locked(func() { w.b.warnings = append(w.b.warnings, r.Message) })
	return nil
}

func (b *bridge) locked(do func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	do()
}

func (b *bridge) Committed(string, int, float64)   { b.locked(func() { b.bundles++ }) }
func (b *bridge) Repaired(k flowstore.Kind, n int) { b.locked(func() { b.repaired[k] += n }) }
func (b *bridge) Flows(ctx context.Context, filter of.FlowFilter) ([]of.FlowStats, error) {
	b.locked(func() { b.looks++ })
	return b.Conn.Flows(ctx, filter)
}
func (b *bridge) Watch(ctx context.Context, tables []uint8, heard func()) error {
	return b.Conn.Watch(ctx, tables, func() {
		b.reading.Lock()
		defer b.reading.Unlock()
		heard()
	})
}
func (b *bridge) Commit(ctx context.Context, mods []of.Mod) error {
	b.locked(func() {
		b.sent = nil
		for _, m := range mods {
			b.sent = append(b.sent, m.String())
		}
	})
	if b.fail != nil {
		if err := b.fail(false); err != nil {
			return err
		}
	}
	err := b.Conn.Commit(ctx, mods)
	if b.fail != nil {
		err = errors.Join(err, b.fail(true))
	}
	return err
}

// change is what owners of the first kind of the first area want, with all of the kinds.
func (b *bridge) change(names map[string]flowstore.Want, all ...flowstore.Kind) (c flowstore.Change) {
	c.All(all...)
	for name, w := range names {
		c.Set(flowstore.Owner{Kind: b.areas[0].Kinds[0], Name: name}, w)
	}
	return c
}

func (b *bridge) set(names map[string]flowstore.Want, all ...flowstore.Kind) flowstore.Result {
	b.t.Helper()
	r, err := b.store.Set(b.t.Context(), b.change(names, all...))
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *bridge) resync(area string) flowstore.Result {
	b.t.Helper()
	r, err := b.store.Resync(b.t.Context(), area)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// contents are all flows, groups and meters that the switch has, as text without blanks
// between fields.
func (b *bridge) contents() []string {
	b.t.Helper()
	flows, err := b.Conn.Flows(b.t.Context(), of.FlowFilter{})
	groups, err2 := b.Conn.Groups(b.t.Context())
	meters, err3 := b.Conn.Meters(b.t.Context())
	if err := errors.Join(err, err2, err3); err != nil {
		b.t.Fatal(err)
	}
	var out []string
	for _, f := range flows {
		out = append(out, text(f.Flow))
	}
	for _, g := range groups {
		out = append(out, g.String())
	}
	for _, m := range meters {
		out = append(out, m.String())
	}
	slices.Sort(out)
	return out
}

func text(f of.Flow) string {
	s := strings.ReplaceAll(f.String(), ", ", ",")
	return strings.ReplaceAll(s, " actions=", ",actions=")
}

func (b *bridge) require(when string, want ...string) {
	b.t.Helper()
	slices.Sort(want)
	if diff := cmp.Diff(want, b.contents()); diff != "" {
		b.t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}
