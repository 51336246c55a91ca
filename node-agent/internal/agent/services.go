package agent

import (
	"context"
	"errors"
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

// serviceFeed is the services of the cluster on their way into the flows.
type serviceFeed struct {
	// table is nil outside of Kubernetes.
	table serviceTable
	// connected is that the table knows of the newest switch; told, that it knows
	// all services; behind, that some news have not reached the switch.
	connected, told, behind bool
}

// errNoServices is the state before the first update.
var errNoServices = errors.New("the API server has not told of the services yet: those from before stay as they were")

// serve brings news of services into the flows, also while something else is
// amiss. It reports whether that was all there was to do.
func (n *node) serve(ctx context.Context, u service.Update) bool {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	was := n.servicesReady()
	start := time.Now()
	err := n.services.table.Update(ctx, u)
	n.services.told = n.services.told || u.Full
	if err == nil {
		n.metrics.programming.Observe(time.Since(start).Seconds())
	}
	n.served(err)
	return was == nil && err == nil && n.Ready() == nil
}

// resyncServices tells the services of a new switch, brings into the flows what
// did not get there, and puts right all of them when full. No failure of it keeps
// pods from being attached.
func (n *node) resyncServices(ctx context.Context, full bool) {
	s := &n.services
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
	n.served(err)
}

// served notes what became of services.
func (n *node) served(err error) {
	n.services.behind = err != nil
	count, endpoints, flows := n.services.table.Counts()
	n.metrics.services.Set(float64(count))
	n.metrics.endpoints.Set(float64(endpoints))
	n.metrics.serviceFlows.Set(float64(flows))
	left := n.services.table.LeftOut()
	for _, reason := range service.Reasons {
		n.metrics.leftOut.WithLabelValues(string(reason)).Set(float64(left[reason]))
	}
	away := errors.Is(err, flowstore.ErrDisconnected) || errors.Is(err, flowstore.ErrNotReady)
	if err == nil && !n.services.told {
		err = errNoServices
	}
	n.mu.Lock()
	was := n.noServices
	n.noServices = err
	n.mu.Unlock()
	switch {
	case err == nil && was != nil:
		n.log.Info("services are in the flows", "services", count, "endpoints", endpoints)
	case err != nil && !away && (was == nil || was.Error() != err.Error()):
		n.log.Error("services are not what they should be: trying again", "error", err)
	}
}

// servicesReady is nil when pods have the services that the API server told of.
// Pods are attached without them too: an agent that restarts while the API server is
// away leaves the flows as they are.
func (n *node) servicesReady() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.noServices
}
