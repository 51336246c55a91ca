package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// judged stands in for the firewall's table of policies.
type judged struct {
	removed int
	err     error
}

func (j *judged) Remove(context.Context) error { j.removed++; return j.err }

// TestFormer: what services and policies a node had as one of a cluster is gone once it starts outside of one, and what somebody puts
// back goes again.
func TestFormer(t *testing.T) {
	o := ovstest.Start(t)
	o.AddBridge("br0", "dummy")
	ctx := t.Context()
	conn, err := of.Dial(ctx, o.Mgmt("br0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	left := func() []string {
		return slices.DeleteFunc(strings.Split(o.OFCtl("--no-stats", "dump-flows", "br0")+o.OFCtl("dump-groups", "br0"), "\n"), func(line string) bool {
			return !strings.Contains(line, "cookie=") && !strings.Contains(line, "group_id=")
		})
	}
	o.OFCtl("del-flows", "br0")
	leave := func() {
		o.OFCtl("add-group", "br0", "group_id=7,type=select,bucket=output:LOCAL")
		for _, kind := range []pipeline.Kind{pipeline.KindService, pipeline.KindRule, pipeline.KindSubject} {
			flow := of.Flow{Table: pipeline.TableReply, Priority: uint16(kind), Cookie: pipeline.Cookie{Kind: kind, Object: 7}.Encode(), Match: of.NewMatch(of.IP())}
			if err := conn.Commit(ctx, []of.Mod{of.AddFlow(flow)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	leave()
	var log bytes.Buffer
	now := time.Now()
	store := flowstore.New(flowstore.Config{
		Areas: append([]flowstore.Area{nodeflows.Area()}, clusterAreas()...), Observer: unobserved{}, Now: func() time.Time { return now },
	})
	judge := &judged{}
	f := &former{store: store, areas: clusterAreas(), judge: judge, log: slog.New(slog.NewTextHandler(&log, nil))}
	clear := func(full bool) {
		t.Helper()
		if err := f.clear(ctx, &pass{full: full}); err != nil {
			t.Fatal(err)
		}
	}
	clear(false) // no switch yet
	store.Connect(conn)
	judge.err = errors.New("no nft")
	clear(false)
	if got := left(); len(got) != 0 {
		t.Errorf("left are %v", got)
	}
	judge.err = nil
	clear(false)
	clear(false)
	if judge.removed != 2 || strings.Count(log.String(), "no nft") != 1 {
		t.Errorf("the firewall was asked %d times, want 2, and said %s", judge.removed, &log)
	}
	if got := left(); len(got) != 0 {
		t.Errorf("left are %v", got)
	}
	leave()
	if len(left()) != 4 {
		t.Fatalf("what was put back is not there: %v", left())
	}
	now = now.Add(time.Hour)
	clear(false) // nothing says that there is anything to do
	clear(true)
	if got := left(); len(got) != 0 {
		t.Errorf("left of what was put back are %v", got)
	}
}
