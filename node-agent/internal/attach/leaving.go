package attach

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

const (
	// calm is how long nothing is attached or detached before what is left of pods is
	// removed: ovs-vswitchd does nothing else meanwhile, and pods that come would wait for it.
	calm = 50 * time.Millisecond
	// leavingAtMost and leavingPods are how long, and of how many pods, it may be left.
	leavingAtMost = 500 * time.Millisecond
	leavingPods   = 128
	// closeTimeout is how long ovs-vswitchd may take to close ports. One that is away keeps
	// their addresses from being given out, and nothing else.
	closeTimeout = 2 * time.Second
	// finishTimeout bounds what an agent that ends still does.
	finishTimeout = 3 * time.Second
	// leastPause and mostPause bound the pause after a failure.
	leastPause = 100 * time.Millisecond
	mostPause  = 5 * time.Second
)

// leaving are attachments whose flows are gone and whose leases say so; what else there
// is of them is to be removed. There are never more of them than addresses.
type leaving struct {
	// turn has one element while somebody removes.
	turn chan struct{}
	// news holds one element after something came, began or ended.
	news chan struct{}

	mu   sync.Mutex
	list map[cniapi.Attachment]Attachment
	// active counts ADDs and DELs that are under way.
	active int
}

func newLeaving() *leaving {
	return &leaving{turn: make(chan struct{}, 1), news: make(chan struct{}, 1), list: map[cniapi.Attachment]Attachment{}}
}

func (l *leaving) put(at Attachment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list[at.Attachment] = at
	l.tell()
}

func (l *leaving) has(key cniapi.Attachment) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.list[key]
	return ok
}

func (l *leaving) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.list)
}

func (l *leaving) all() []Attachment {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Attachment, 0, len(l.list))
	for _, at := range l.list {
		out = append(out, at)
	}
	return out
}

func (l *leaving) drop(keys []cniapi.Attachment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range keys {
		delete(l.list, key)
	}
}

// begin says that an ADD or a DEL is under way, until the returned function is called.
func (l *leaving) begin() (end func()) {
	l.add(1)
	return func() { l.add(-1) }
}

func (l *leaving) add(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active += n
	l.tell()
}

// tell wakes whoever waits for news; l.mu is held.
func (l *leaving) tell() {
	select {
	case l.news <- struct{}{}:
	default:
	}
}

// due waits until there is something to remove, and then for a quiet moment, but not
// long.
func (l *leaving) due(ctx context.Context) error {
	state := func() (waiting, active int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.list), l.active
	}
	quiet, late := time.NewTimer(calm), time.NewTimer(leavingAtMost)
	defer quiet.Stop()
	defer late.Stop()
	began := false
	for {
		waiting, active := state()
		if waiting > 0 && !began {
			began = true
			late.Reset(leavingAtMost)
		}
		if waiting >= leavingPods {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.news:
			quiet.Reset(calm)
		case <-quiet.C:
			if waiting > 0 && active == 0 {
				return nil
			}
		case <-late.C:
			if waiting > 0 && began {
				return nil
			}
		}
	}
}

// remains is what could not be finished.
type remains struct {
	// err is why nothing was tried; each says what is still there of which attachment.
	err  error
	each map[cniapi.Attachment]error
	// unclosed is why Open vSwitch may still have ports, whose devices are gone: their
	// addresses wait for it, and DEL does not.
	unclosed error
}

// of is what is still there of one attachment.
func (r remains) of(key cniapi.Attachment) error { return errors.Join(r.err, r.each[key]) }

// all is what is still there of any, in the same order each time.
func (r remains) all() error {
	errs := []error{r.err}
	for _, key := range slices.SortedFunc(maps.Keys(r.each), byText) {
		errs = append(errs, fmt.Errorf("attachment %s: %w", key, r.each[key]))
	}
	return errors.Join(errs...)
}

func byText(x, y cniapi.Attachment) int { return strings.Compare(x.String(), y.String()) }

// Run removes what is left of pods that were detached, until ctx ends.
func (a *Attacher) Run(ctx context.Context) error {
	pauses := backoff.Pauses{First: leastPause, Last: mostPause}
	var trouble backoff.Trouble
	for {
		if err := a.leaving.due(ctx); err != nil {
			return err
		}
		r := a.finish(ctx)
		err := errors.Join(r.all(), r.unclosed)
		if trouble.News(err) && ctx.Err() == nil {
			a.log.Warn("what is left of pods that were detached cannot be removed yet", "error", err)
		}
		if err == nil {
			pauses.Reset()
		} else if !pauses.Wait(ctx) {
			return ctx.Err()
		}
	}
}

// Finish removes what is left of pods that were detached, for an agent that ends. What
// cannot be removed now the next one finds.
func (a *Attacher) Finish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, finishTimeout)
	defer cancel()
	if err := a.finish(ctx).all(); err != nil {
		a.log.Warn("what is left of pods that were detached is removed by the next start", "error", err)
	}
}

// left makes sure that nothing is left of an attachment that DEL has taken off the network
// before: its port, its devices and its lease have the names that an ADD needs.
func (a *Attacher) left(ctx context.Context, key cniapi.Attachment) error {
	if !a.leaving.has(key) {
		return nil
	}
	r := a.finish(ctx)
	if !a.leaving.has(key) {
		return nil
	}
	return cniapi.Errorf(cniapi.CodeTryAgain, "attachment %s is still being detached: %w", key, errors.Join(r.of(key), r.unclosed))
}

// finish removes what there is of all that are leaving: ports, devices, and then leases.
func (a *Attacher) finish(ctx context.Context) remains {
	select {
	case a.leaving.turn <- struct{}{}:
	case <-ctx.Done():
		return remains{err: fmt.Errorf("waiting for pods that are leaving: %w", ctx.Err())}
	}
	defer func() { <-a.leaving.turn }()
	_, pool, err := a.known()
	list := a.leaving.all()
	if err != nil || len(list) == 0 {
		return remains{} // before Start there is nothing to finish
	}
	config, errs, away := a.takeDown(ctx, list)
	r := remains{each: map[cniapi.Attachment]error{}, unclosed: away}
	var gone []cniapi.Attachment
	for i, at := range list {
		if errs[i] != nil {
			r.each[at.Attachment] = errs[i]
		} else {
			gone = append(gone, at.Attachment)
		}
	}
	if len(gone) == 0 || away != nil {
		return r
	}
	if r.unclosed = a.observe(LeftClosed, func() error { return a.closed(ctx, config) }); r.unclosed != nil {
		return r
	}
	_ = a.observe(LeftLeases, func() error { pool.ReleaseAll(gone...); return nil })
	a.leaving.drop(gone)
	a.log.Debug("removed what was left of detached pods", "count", len(gone))
	return r
}

// takeDown removes ports and devices; there is one error for each of list. It also returns
// what to wait for until the ports are closed, or that the database does not answer.
func (a *Attacher) takeDown(ctx context.Context, list []Attachment) (config ovs.ConfigNumber, errs []error, away error) {
	errs = make([]error, len(list))
	names := make([]string, len(list))
	for i, at := range list {
		names[i] = at.HostIf()
	}
	away = a.observe(LeftRows, func() (err error) {
		config, err = a.deletePorts(ctx, names, errs)
		return err
	})
	_ = a.observe(LeftConnections, func() error { a.forget(list, errs); return nil })
	_ = a.observe(LeftDevices, func() error {
		for i, err := range a.kernel.DeleteAll(names) {
			errs[i] = errors.Join(errs[i], err)
		}
		return nil
	})
	return config, errs, away
}

// deletePorts removes ports, in one transaction; where that fails, one by one, to know
// which of them it is. The error is that the database does not answer.
func (a *Attacher) deletePorts(ctx context.Context, names []string, errs []error) (config ovs.ConfigNumber, away error) {
	config, err := a.ports.DeletePorts(ctx, a.bare.bridge, names)
	if err == nil || errors.Is(err, ovs.ErrDisconnected) {
		return config, err
	}
	for i, name := range names {
		if errs[i] = err; len(names) == 1 || ctx.Err() != nil {
			continue
		}
		var one ovs.ConfigNumber
		one, errs[i] = a.ports.DeletePorts(ctx, a.bare.bridge, []string{name})
		config = max(config, one)
	}
	return config, nil
}

// forget takes out of sandboxes that stay what does not go with the device, and ends what
// the node's NAT remembers.
func (a *Attacher) forget(list []Attachment, errs []error) {
	var addresses []netip.Addr
	for i, at := range list {
		if !at.Address.IsValid() {
			continue
		}
		addresses = append(addresses, at.Address)
		if at.Netns != "" {
			errs[i] = errors.Join(errs[i], a.kernel.Leave(Wire{Netns: at.Netns, IfName: at.IfName, Address: at.Address}))
		}
	}
	if err := a.kernel.Forget(addresses...); err != nil {
		for i := range errs {
			errs[i] = errors.Join(errs[i], err)
		}
	}
}

// closed waits until ovs-vswitchd has closed the ports that were removed.
func (a *Attacher) closed(ctx context.Context, config ovs.ConfigNumber) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	if config > 0 {
		return a.ports.WaitApplied(ctx, config)
	}
	// Somebody else has removed them, perhaps this agent before it was killed.
	return a.ports.Sync(ctx)
}
