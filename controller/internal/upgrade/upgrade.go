// Package upgrade ends the identity that all nodes shared in the release before this
// one: a user of etcd, whose certificate was in a Secret. It goes when every node has its
// own; docs/identities.md has the order. Each step may be interrupted, and is then taken anew.
package upgrade

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const (
	// Patience is how long a node without an agent is waited for: an agent that is being
	// upgraded is away for seconds. One that comes back later asks for its certificate then.
	Patience = 10 * time.Minute
	// lookEvery is how often the nodes are looked at, retryEvery how soon a step that
	// failed is taken again, remindEvery how often is said what is waited for.
	lookEvery   = 5 * time.Second
	retryEvery  = 10 * time.Second
	remindEvery = time.Hour
	// named is how many nodes a message names.
	named = 10

	reasonWaits = "SharedIdentityInUse"
	reasonEnded = "SharedIdentityEnded"
)

// Node is one of which the release before knew.
type Node struct {
	Name string
	// Live: its agent runs. Own: it has an identity of its own.
	Live, Own bool
}

// Nodes are those with a record, sorted by name.
func Nodes(records map[netip.Addr]topology.Node, live map[netip.Addr]topology.NodeStatus) []Node {
	var all []Node
	for ip, rec := range records {
		status, there := live[ip]
		all = append(all, Node{Name: rec.Host, Live: there, Own: status.Identity != ""})
	}
	slices.SortFunc(all, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Watch remembers since when nodes have no agent.
type Watch struct{ away map[string]time.Time }

// Waits are the nodes because of which the shared identity stays: those whose agents have no other,
// and those whose agents went not long ago.
func (w *Watch) Waits(nodes []Node, now time.Time) []string {
	away := map[string]time.Time{}
	var waits []string
	for _, n := range nodes {
		if n.Live {
			if !n.Own {
				waits = append(waits, n.Name)
			}
			continue
		}
		since, known := w.away[n.Name]
		if !known {
			since = now
		}
		away[n.Name] = since
		if now.Sub(since) < Patience {
			waits = append(waits, n.Name)
		}
	}
	w.away = away
	return waits
}

// Users is etcd, as far as the shared user is concerned.
type Users interface {
	// Shared reports whether there is one.
	Shared(ctx context.Context) (bool, error)
	// Drop takes it away; its streams end.
	Drop(ctx context.Context) error
	// Nodes are those there are now.
	Nodes(ctx context.Context) ([]Node, error)
}

// Config of an Ending.
type Config struct {
	Users Users
	// Tidy takes away what is left of the shared certificate, once nobody is let in with
	// it. It may be called again.
	Tidy func(ctx context.Context) error
	// Event tells people; Pod is what about, and no Events are sent where it has no name.
	Event  func(object kube.ObjectRef, warning bool, reason kube.EventReason, message string)
	Pod    kube.ObjectRef
	Logger *slog.Logger
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// Ending is the end of the shared identity.
type Ending struct {
	cfg    Config
	watch  Watch
	said   string
	saidAt time.Time
}

// New makes an Ending; it does nothing before Run.
func New(cfg Config) *Ending {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Ending{cfg: cfg}
}

// Run returns when nothing shared is left, or ctx ends.
func (e *Ending) Run(ctx context.Context) {
	var trouble backoff.Trouble
	for {
		pause := lookEvery
		done, err := e.step(ctx)
		if done && err == nil || ctx.Err() != nil {
			return
		}
		if trouble.News(err) {
			e.cfg.Logger.Warn("the identity that all nodes shared before cannot be ended; trying again", "error", err)
		}
		if err != nil {
			pause = retryEvery
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// step goes as far as it can.
func (e *Ending) step(ctx context.Context) (done bool, err error) {
	shared, err := e.cfg.Users.Shared(ctx)
	if err != nil {
		return false, err
	}
	if !shared {
		return true, e.cfg.Tidy(ctx)
	}
	nodes, err := e.cfg.Users.Nodes(ctx)
	if err != nil {
		return false, err
	}
	if waits := e.watch.Waits(nodes, e.cfg.Now()); len(waits) > 0 {
		e.remind(waits)
		return false, nil
	}
	if err := e.cfg.Users.Drop(ctx); err != nil {
		return false, err
	}
	e.tell(slog.LevelInfo, reasonEnded, "every node has an identity of its own: the certificate that all shared before is refused from now on")
	return true, e.cfg.Tidy(ctx)
}

// remind says what is waited for when it is something else, and now and then.
func (e *Ending) remind(waits []string) {
	names := strings.Join(waits[:min(len(waits), named)], ", ")
	if more := len(waits) - named; more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	text := "all nodes may still use the certificate that they shared before: it ends when the agents of these have their own, or are away for " + Patience.String() + ": " + names
	now := e.cfg.Now()
	if text == e.said && now.Sub(e.saidAt) < remindEvery {
		return
	}
	e.said, e.saidAt = text, now
	e.tell(slog.LevelWarn, reasonWaits, text)
}

func (e *Ending) tell(level slog.Level, reason kube.EventReason, text string) {
	e.cfg.Logger.Log(context.Background(), level, text)
	if e.cfg.Pod.Name != "" {
		e.cfg.Event(e.cfg.Pod, level > slog.LevelInfo, reason, text)
	}
}
