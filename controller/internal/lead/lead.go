// Package lead runs the controller: it sees to the network configuration, waits
// until it leads, and then keeps the records as packages tenant and subnet say
// they should be, until it no longer leads.
package lead

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/cluster"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Why a term ends although nobody else was elected.
var (
	errRenamed  = errors.New("the network configuration has another Name")
	errWentBack = errors.New("etcd went back to older records")
)

const (
	minPause = 100 * time.Millisecond
	maxPause = 2 * time.Second
)

// Config of a Controller.
type Config struct {
	Store *store.Store
	// ID names this controller to people who ask who leads.
	ID string
	// Network is written if the network has no configuration.
	Network topology.Config
	// Explicit names the fields of Network that the user gave, to warn of where
	// the record differs.
	Explicit map[string]bool
	// GlobalNamespaces start global.
	GlobalNamespaces []string
	// LeaderTTL is how long a controller that died without a word stays the
	// leader; store.DefaultLeaderTTL when zero.
	LeaderTTL time.Duration
	// Cluster is the Kubernetes cluster whose namespaces and nodes the records
	// follow; nil for none.
	Cluster *Cluster
	// Signer signs for nodes outside of Kubernetes; nil where nobody does.
	Signer Signer
	// Duties are what a leader does beside the records. Each is called once for a term,
	// and returns when its ctx ends, with the term, if not before.
	Duties []func(ctx context.Context)
	// Random is the source of netIDs: crypto/rand.Reader.
	Random io.Reader
	// Now is the clock of Status times; time.Now when nil.
	Now     func() time.Time
	Metrics *Metrics
	Logger  *slog.Logger
}

// Controller is one candidate for the lead.
type Controller struct {
	cfg   Config
	log   *slog.Logger
	world *world // nil without a Cluster
	// wentByFew is when a term last looked at what only few nodes hold. Only terms use it, one
	// after the other.
	wentByFew time.Time

	mu      sync.Mutex // guards what follows
	problem error      // why there is no configuration; nil once there is
	state   State
}

// State is what /debug/state shows.
type State struct {
	ID       string            `json:"id"`
	Leader   bool              `json:"leader"`
	Network  topology.Config   `json:"network"`
	Revision int64             `json:"revision"`
	Records  map[string]int    `json:"records"`
	Invalid  map[string]string `json:"invalid,omitempty"`
}

// New makes a Controller; it does nothing before Run.
func New(cfg Config) *Controller {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Controller{cfg: cfg, log: cfg.Logger, problem: errors.New("etcd was not asked for the network configuration yet"), state: State{ID: cfg.ID}}
	if cfg.Cluster != nil {
		c.world = newWorld()
	}
	return c
}

// Run works until ctx ends, and gives the lead up then. It has no other end:
// what goes wrong is tried again, and shows in Ready.
func (c *Controller) Run(ctx context.Context) error {
	if c.world != nil {
		var watching sync.WaitGroup
		watching.Go(func() { c.world.follow(c.cfg.Cluster.API.WatchCluster(ctx)) })
		defer watching.Wait()
	}
	pauses, trouble := newPauses(), backoff.Trouble{}
	for ctx.Err() == nil {
		network, err := c.network(ctx)
		if err != nil {
			break
		}
		began := time.Now()
		err = c.serve(ctx, network)
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > maxPause {
			pauses.Reset()
			trouble.Over()
		}
		if trouble.News(err) {
			c.log.Warn("not leading; campaigning again", "error", err)
		}
		pauses.Wait(ctx)
	}
	return ctx.Err()
}

func newPauses() backoff.Pauses { return backoff.Pauses{First: minPause, Last: maxPause} }

// Ready is nil when the controller works: it leads, or would if it were its turn.
func (c *Controller) Ready() error {
	c.mu.Lock()
	problem := c.problem
	c.mu.Unlock()
	if problem != nil {
		return problem
	}
	return c.cfg.Store.Healthy()
}

// State is for /debug/state.
func (c *Controller) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c *Controller) setProblem(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problem = err
}

// network returns the network configuration, after writing it if there is none.
// One that is not valid is waited for: people wrote it, people must mend it.
func (c *Controller) network(ctx context.Context) (topology.Config, error) {
	tried := false
	cfg, err := c.cfg.Store.WaitConfig(ctx, func(err error) {
		c.setProblem(err)
		switch {
		case errors.Is(err, store.ErrInvalid):
			c.log.Error("the network configuration is not valid; waiting until it is mended", "error", err)
		case errors.Is(err, store.ErrNoConfig) && !tried:
			tried = true
			c.create(ctx)
		default:
			c.log.Warn("cannot read the network configuration; trying again", "error", err)
		}
	})
	if err != nil {
		return topology.Config{}, err
	}
	c.setProblem(nil)
	c.compare(cfg.Value)
	return cfg.Value, nil
}

// create writes the configuration of the flags, unless someone is quicker. One
// that does not fit the Kubernetes cluster is not written.
func (c *Controller) create(ctx context.Context) {
	pauses, trouble := newPauses(), backoff.Trouble{}
	for ctx.Err() == nil {
		err := c.fits(ctx, c.cfg.Network)
		if err == nil {
			_, err = c.cfg.Store.PutConfig(ctx, c.cfg.Network)
		} else if _, rerr := c.cfg.Store.Config(ctx); rerr == nil {
			return
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			c.log.Info("wrote the network configuration", "config", c.cfg.Network)
			return
		}
		if errors.Is(err, store.ErrConflict) {
			return
		}
		if trouble.News(err) {
			c.setProblem(err)
			c.log.Error("cannot write the network configuration; trying again", "error", err)
			if errors.Is(err, cluster.ErrMisfit) {
				c.cfg.Cluster.complain(err)
			}
		}
		pauses.Wait(ctx)
	}
}

// compare warns where the record wins over a flag.
func (c *Controller) compare(record topology.Config) {
	have, want := reflect.ValueOf(record), reflect.ValueOf(c.cfg.Network)
	for field := range c.cfg.Explicit {
		if h, w := have.FieldByName(field).Interface(), want.FieldByName(field).Interface(); h != w {
			c.log.Warn("a flag differs from the network configuration in etcd, which wins", "field", field, "flag", w, "record", h)
		}
	}
}

// serve campaigns in one network and then leads it, until that ends.
func (c *Controller) serve(ctx context.Context, network topology.Config) error {
	l, err := c.campaign(ctx, network)
	if err != nil {
		return err
	}
	c.log.Info("leading", "network", network.Name, "id", c.cfg.ID)
	c.leading(true, network)
	err = newTerm(c, l).run(ctx)
	c.leading(false, network)
	// So that the next need not wait for the lease to run out.
	if rerr := l.Resign(); rerr != nil && ctx.Err() != nil {
		c.log.Warn("could not resign; the next controller leads when the lease has run out", "error", rerr)
	}
	return err
}

// campaign waits for the lead. It watches meanwhile, so that Ready knows of
// etcd and a new Name of the network is noticed.
func (c *Controller) campaign(ctx context.Context, network topology.Config) (*store.Leadership, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for r := range c.cfg.Store.WatchRecords(ctx) {
			c.observe(r)
			if r.Config.Name != network.Name {
				cancel(errRenamed)
			}
		}
	}()
	l, err := c.cfg.Store.Campaign(ctx, network.Name, c.cfg.ID, c.cfg.LeaderTTL)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errRenamed) {
		err = cause
	}
	cancel(nil)
	<-done
	return l, err
}

// observe takes a snapshot in for State and the metrics.
func (c *Controller) observe(r store.Records) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.Network, c.state.Revision, c.state.Invalid = r.Config, r.Revision, r.Invalid
	c.state.Records = map[string]int{"namespaces": len(r.Namespaces), "nodes": len(r.Nodes), "invalid": len(r.Invalid)}
	c.cfg.Metrics.observe(r)
}

func (c *Controller) leading(yes bool, network topology.Config) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// The lead may come before the first snapshot does.
	c.state.Leader, c.state.Network = yes, network
	c.cfg.Metrics.leading(yes)
}
