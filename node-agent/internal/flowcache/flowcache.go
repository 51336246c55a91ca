// Package flowcache watches how full the switch's cache of flows is, which all pods of a node share, and tells
// when it stays full, and who fills it.
//
// It changes nothing: Open vSwitch has no bound for one port's part.
package flowcache

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

const (
	// lookEvery is how often the cache is looked at.
	lookEvery = 10 * time.Second
	// A cache that has nine tenths of the flows that it may have, or had no room for so many packets' flows since
	// the look before, in as many looks one after the other, is full: Open vSwitch lets it have more within seconds
	// where it can. Where it cannot, it empties the cache, and few may be there at the moment of a look.
	fullPart    = 0.9
	fullRefused = 1000
	fullLooks   = 3
	// listMost is how many flows are listed at most: ovs-vswitchd does nothing else meanwhile.
	listMost = 30_000
	// again is how long flows are not listed again, and nobody told again: a pod may fill the cache and let it
	// be as often as it likes.
	again = 10 * time.Minute
	// namedPorts is how many ports are named.
	namedPorts = 3
	// lookTimeout bounds one look.
	lookTimeout = 5 * time.Second
)

// Switch has the cache; [ovs.Client] is one.
type Switch interface {
	FlowCache(ctx context.Context, datapath string) (ovs.FlowCache, error)
	FlowsByPort(ctx context.Context, datapath string) (map[string]uint64, error)
}

// Pods are what is attached; [attach.Attacher] is them.
type Pods interface{ List() []attach.Attachment }

// Config is whose cache is watched, and who is told.
type Config struct {
	Switch   Switch
	Datapath string
	Pods     Pods
	// Tell tells people that the cache is full.
	Tell    func(why string)
	Metrics *Metrics
	Logger  *slog.Logger
}

// Metrics are about the cache.
type Metrics struct{ flows, limit prometheus.Gauge }

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	register := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return register.NewGauge(prometheus.GaugeOpts{Namespace: "k8s_ovs", Name: name, Help: help})
	}
	return &Metrics{
		flows: gauge("datapath_flows", "Flows in the switch's cache, which all pods of the node share; without one, each packet goes through ovs-vswitchd."),
		limit: gauge("datapath_flows_limit", "Flows that Open vSwitch lets the cache have now: other_config:flow-limit at most, fewer while it cannot look after so many."),
	}
}

// Watch watches the cache. Its Run belongs to one goroutine.
type Watch struct {
	cfg   Config
	looks int
	// refused is the counter at the last look.
	refused uint64
	why     atomic.Pointer[string]
	// told is when people were told last, listed when flows were, and most which ports had most then.
	told, listed time.Time
	most         string
	// quiet is that nobody was told of this time.
	quiet bool
	// trouble is why the last look failed.
	trouble backoff.Trouble
}

// New returns a watch that has not looked yet.
func New(cfg Config) *Watch { return &Watch{cfg: cfg} }

// Why says that the cache is full, and what helps; it is empty where it is not. It may be called at any time.
func (w *Watch) Why() string {
	if why := w.why.Load(); why != nil {
		return *why
	}
	return ""
}

// Run looks at the cache until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			w.look(ctx)
		}
	}
}

// look asks once, and tells what is new.
func (w *Watch) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	c, err := w.cfg.Switch.FlowCache(ctx, w.cfg.Datapath)
	if w.trouble.News(err) {
		w.cfg.Logger.Warn("how full the switch's flow cache is cannot be seen", "error", err)
	}
	if err != nil {
		return
	}
	w.cfg.Metrics.flows.Set(float64(c.Flows))
	w.cfg.Metrics.limit.Set(float64(c.Limit))
	refused := c.Refused - min(w.refused, c.Refused) // it began anew, where ovs-vswitchd did
	if w.refused = c.Refused; float64(c.Flows) < fullPart*float64(c.Limit) && refused < fullRefused {
		if w.looks = 0; w.why.Swap(nil) != nil && !w.quiet {
			w.cfg.Logger.Info("the switch's flow cache has room again", "flows", c.Flows, "limit", c.Limit)
		}
		return
	}
	if w.looks++; w.looks < fullLooks || w.why.Load() != nil {
		return
	}
	why := fmt.Sprintf("the switch's flow cache is full (%d of %d flows, no room for %d packets' since the last look), so that packets of all pods' new connections go through ovs-vswitchd one by one: %s; "+
		"stop or move the pod that makes so many, or, where the limit is Open vSwitch's other_config:flow-limit, raise that", c.Flows, c.Limit, refused, w.who(ctx, c))
	w.why.Store(&why)
	if w.quiet = lately(w.told); w.quiet {
		w.cfg.Logger.Debug(why)
		return
	}
	w.told = time.Now()
	w.cfg.Logger.Warn(why)
	w.cfg.Tell(why)
}

// lately reports whether something was less than again ago.
func lately(at time.Time) bool { return !at.IsZero() && time.Since(at) < again }

// who names the ports with the most flows, or those that had most when flows were listed last.
func (w *Watch) who(ctx context.Context, c ovs.FlowCache) string {
	if c.Flows > listMost {
		return fmt.Sprintf("there are more flows than are listed (%d), `ovs-appctl dpctl/dump-flows --names` tells where they come from", listMost)
	}
	if lately(w.listed) {
		return fmt.Sprintf("%s (as of %s)", w.most, w.listed.UTC().Format(time.RFC3339))
	}
	counts, err := w.cfg.Switch.FlowsByPort(ctx, w.cfg.Datapath)
	w.listed = time.Now()
	if err != nil {
		w.most = fmt.Sprintf("where they come from cannot be seen (%v)", err)
		return w.most
	}
	pods := map[string]string{}
	for _, at := range w.cfg.Pods.List() {
		pods[at.HostIf()] = " of pod " + at.Namespace + "/" + at.Pod
	}
	ports := slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b)) })
	var said []string
	for _, port := range ports[:min(len(ports), namedPorts)] {
		said = append(said, fmt.Sprintf("%d from port %s%s", counts[port], port, pods[port]))
	}
	w.most = "most are " + strings.Join(said, ", ")
	return w.most
}
