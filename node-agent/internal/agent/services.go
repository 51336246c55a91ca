package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// serviceTable is the services in the flows of the bridge; [services.Table] is
// one. It keeps what it is told while there is no switch, and brings it into the flows
// on connection.
type serviceTable interface {
	Update(ctx context.Context, u service.Update) error
	// Connected says that the switch is another one.
	Connected(ctx context.Context) error
	// Resync reads the switch and puts right what differs.
	Resync(ctx context.Context) error
	// Counts are services, distinct endpoints and flows.
	Counts() (services, endpoints, flows int)
	// LeftOut counts the endpoints that no pod is sent to.
	LeftOut() map[service.Reason]int
}

// serviceFeed is the services of the cluster on their way into the flows. But for ready it
// belongs to the loop's goroutine.
type serviceFeed struct {
	// table is nil outside of Kubernetes.
	table serviceTable
	// nodeReady is nil when pods can be attached.
	nodeReady func() error
	metrics   *metrics
	log       *slog.Logger
	// connected is that the table knows of the newest switch; complete, that it knows
	// all services; behind, that some news have not reached the switch.
	connected, complete, behind bool

	mu sync.Mutex
	// notReady says why pods do not have the services that they should.
	notReady error
}

// newServiceFeed returns a feed without services; table is nil outside of Kubernetes.
func newServiceFeed(table serviceTable, nodeReady func() error, m *metrics, log *slog.Logger) *serviceFeed {
	s := &serviceFeed{table: table, nodeReady: nodeReady, metrics: m, log: log}
	if table != nil {
		s.notReady = errNoServices
	}
	return s
}

// errNoServices is the state before the first update.
var errNoServices = errors.New("the API server has not told of the services yet: those from before stay as they were")

// update brings news of services into the flows, also while something else is
// amiss. It reports whether that was all there was to do.
func (s *serviceFeed) update(ctx context.Context, u service.Update) bool {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	was := s.ready()
	start := time.Now()
	err := s.table.Update(ctx, u)
	s.complete = s.complete || u.Full
	if err == nil {
		s.metrics.programming.Observe(time.Since(start).Seconds())
	}
	s.note(err)
	return was == nil && err == nil && s.nodeReady() == nil
}

// follow brings services into the flows, and puts right what differs. It is never why
// pods cannot be attached.
func (s *serviceFeed) follow(ctx context.Context, p *pass) error {
	s.resync(ctx, p.full)
	return nil
}

// resync tells the services of a new switch, brings into the flows what
// did not get there, and puts right all of them when full. No failure of it keeps
// pods from being attached.
func (s *serviceFeed) resync(ctx context.Context, full bool) {
	var err error
	switch {
	case s.table == nil:
		return
	case !s.connected:
		err = s.table.Connected(ctx)
		s.connected = err == nil
	case full || s.behind:
		err = s.table.Resync(ctx)
	default:
		return
	}
	s.note(err)
}

// disconnect says that the switch is gone.
func (s *serviceFeed) disconnect() { s.connected = false }

// note takes in what became of services.
func (s *serviceFeed) note(err error) {
	s.behind = err != nil
	count, endpoints, flows := s.table.Counts()
	s.metrics.services.Set(float64(count))
	s.metrics.endpoints.Set(float64(endpoints))
	s.metrics.serviceFlows.Set(float64(flows))
	left := s.table.LeftOut()
	for _, reason := range service.Reasons {
		s.metrics.leftOut.WithLabelValues(string(reason)).Set(float64(left[reason]))
	}
	away := errors.Is(err, flowstore.ErrDisconnected) || errors.Is(err, flowstore.ErrNotReady)
	if err == nil && !s.complete {
		err = errNoServices
	}
	s.mu.Lock()
	was := s.notReady
	s.notReady = err
	s.mu.Unlock()
	switch {
	case err == nil && was != nil:
		s.log.Info("services are in the flows", "services", count, "endpoints", endpoints)
	case err != nil && !away && (was == nil || was.Error() != err.Error()):
		s.log.Error("services are not what they should be: trying again", "error", err)
	}
}

// ready is nil when pods have the services that the API server told of.
// Pods are attached without them too: an agent that restarts while the API server is
// away leaves the flows as they are.
func (s *serviceFeed) ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.notReady
}
