package attach

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/batch"
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
	// waitersAtOnce is how many may wait for one run of what follows DEL: all of them.
	waitersAtOnce = math.MaxInt
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
	// news holds one element after something came, began or ended.
	news chan struct{}
	// closing holds one element after something was taken down.
	closing chan struct{}
	// downs takes down what is in the list, closes what is down.
	downs  *batch.Batch[struct{}, remains]
	closes *batch.Batch[struct{}, error]

	mu   sync.Mutex
	list map[cniapi.Attachment]departure
	// active counts ADDs and DELs that are under way.
	active int
}

// departure is one that is leaving, and how far that is.
type departure struct {
	Attachment
	// tried is that it was to be taken down, and is not.
	tried bool
	// down is that its row and its devices are gone. Its address may be given out when the
	// switch has taken config in.
	down   bool
	config ovs.ConfigNumber
}

func newLeaving() *leaving {
	return &leaving{news: make(chan struct{}, 1), closing: make(chan struct{}, 1), list: map[cniapi.Attachment]departure{}}
}

func (l *leaving) put(at Attachment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list[at.Attachment] = departure{Attachment: at}
	tell(l.news)
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

// those are the ones that are down, or those that are not yet.
func (l *leaving) those(down bool) (out []departure) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.list {
		if d.down == down {
			out = append(out, d)
		}
	}
	return out
}

// set notes how far departures are.
func (l *leaving) set(list []departure) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range list {
		l.list[d.Attachment.Attachment] = d
	}
	tell(l.closing)
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
	tell(l.news)
}

// tell wakes whoever waits for news; there is one who does.
func tell(news chan struct{}) {
	select {
	case news <- struct{}{}:
	default:
	}
}

// due waits until there is something to take down, and then for a quiet moment, but not
// long. What was tried before waits for retry.
func (l *leaving) due(ctx context.Context, retry <-chan time.Time) error {
	state := func() (waiting, active int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, d := range l.list {
			if !d.down && !d.tried {
				waiting++
			}
		}
		return waiting, l.active
	}
	quiet, late := time.NewTimer(calm), time.NewTimer(leavingAtMost)
	defer quiet.Stop()
	defer late.Stop()
	began := false
	for {
		waiting, active := state()
		switch {
		case waiting >= leavingPods:
			return nil
		case waiting == 0:
			began = false
		case !began:
			began = true
			late.Reset(leavingAtMost)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-retry:
			return nil
		case <-l.news:
			quiet.Reset(calm)
		case <-quiet.C:
			if waiting > 0 && active == 0 {
				return nil
			}
		case <-late.C:
			if waiting > 0 {
				return nil
			}
		}
	}
}

// downAny waits until something was taken down, or for retry.
func (l *leaving) downAny(ctx context.Context, retry <-chan time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-retry:
	case <-l.closing:
	}
	return nil
}

// remains is what could not be taken down.
type remains struct {
	// err is why nothing was tried; each says what is still there of which attachment.
	err  error
	each map[cniapi.Attachment]error
	// rows is why the database may still have the ports, whose devices are gone: their
	// addresses wait for it, and DEL does not.
	rows error
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

// Run removes what is left of pods that were detached, until ctx ends. Taking down does
// not wait for closing: ovs-vswitchd may be away.
func (a *Attacher) Run(ctx context.Context) error {
	var closing sync.WaitGroup
	closing.Go(func() {
		_ = a.repeat(ctx, "the addresses of pods that were detached cannot be given out yet", a.leaving.downAny, a.close)
	})
	err := a.repeat(ctx, "what is left of pods that were detached cannot be removed yet", a.leaving.due, func(ctx context.Context) error {
		r := a.down(ctx)
		return errors.Join(r.all(), r.rows)
	})
	closing.Wait()
	return err
}

// repeat waits and does, and what failed again after a pause, until ctx ends.
func (a *Attacher) repeat(ctx context.Context, failed string, wait func(context.Context, <-chan time.Time) error, do func(context.Context) error) error {
	pauses := backoff.Pauses{First: leastPause, Last: mostPause}
	var trouble backoff.Trouble
	var retry <-chan time.Time
	for {
		if err := wait(ctx, retry); err != nil {
			return err
		}
		err := do(ctx)
		if trouble.News(err) && ctx.Err() == nil {
			a.log.Warn(failed, "error", err)
		}
		if retry = nil; err == nil {
			pauses.Reset()
		} else {
			retry = time.After(pauses.Next())
		}
	}
}

// Finish removes what is left of pods that were detached, for an agent that ends. What
// cannot be removed now the next one finds.
func (a *Attacher) Finish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, finishTimeout)
	defer cancel()
	if err := a.finish(ctx); err != nil {
		a.log.Warn("what is left of pods that were detached is removed by the next start", "error", err)
	}
}

// left makes sure that nothing is in the way of an ADD of what DEL has taken off the network
// before. Its port, its devices and its lease have the names that the ADD needs; so has the
// device of another container in the same sandbox, as a runtime may replace one.
func (a *Attacher) left(ctx context.Context, req cniapi.Request) error {
	key := req.Attachment()
	still := func(key cniapi.Attachment, err error) error {
		return cniapi.Errorf(cniapi.CodeTryAgain, "attachment %s is still being detached: %w", key, err)
	}
	if a.leaving.has(key) {
		r := a.down(ctx)
		closeErr := a.close(ctx)
		if a.leaving.has(key) {
			return still(key, errors.Join(r.of(key), r.rows, closeErr))
		}
	}
	for _, d := range a.leaving.those(false) {
		if d.IfName != req.IfName || d.Netns == "" || !sameSandbox(d.Netns, req.Netns) {
			continue
		}
		if err := a.down(ctx).of(d.Attachment.Attachment); err != nil {
			return still(d.Attachment.Attachment, err)
		}
	}
	return nil
}

// finish removes what there is of all that are leaving: ports, devices, and then leases.
func (a *Attacher) finish(ctx context.Context) error {
	r := a.down(ctx)
	return errors.Join(r.all(), r.rows, a.close(ctx))
}

// down takes down all that are leaving. It is one run for all who ask meanwhile, which
// begins after the last of them has.
func (a *Attacher) down(ctx context.Context) remains {
	r, err := a.leaving.downs.Do(ctx, struct{}{})
	if err != nil {
		r.err = fmt.Errorf("waiting for pods that are leaving: %w", err)
	}
	return r
}

// close gives back the addresses of all that were taken down; as with down it is one run
// for all.
func (a *Attacher) close(ctx context.Context) error {
	err, notBegun := a.leaving.closes.Do(ctx, struct{}{})
	return errors.Join(err, notBegun)
}

// downAll is a run of down.
func (a *Attacher) downAll(ctx context.Context, asked []struct{}) []remains {
	defer a.bare.Hold()()
	r := remains{each: map[cniapi.Attachment]error{}}
	list := a.leaving.those(false)
	if _, _, err := a.known(); err == nil && len(list) > 0 { // before Start there is nothing to finish
		var config ovs.ConfigNumber
		var errs []error
		config, errs, r.rows = a.takeDown(ctx, list)
		for i := range list {
			d := &list[i]
			if errs[i] != nil {
				r.each[d.Attachment.Attachment] = errs[i]
			}
			d.down = errs[i] == nil && r.rows == nil
			d.tried, d.config = !d.down, config
		}
		a.leaving.set(list)
	}
	return slices.Repeat([]remains{r}, len(asked))
}

// closeAll is a run of close.
func (a *Attacher) closeAll(ctx context.Context, asked []struct{}) []error {
	defer a.bare.Hold()()
	errs := make([]error, len(asked))
	list := a.leaving.those(true)
	_, pool, err := a.known()
	if err != nil || len(list) == 0 {
		return errs
	}
	var keys []cniapi.Attachment
	var configs []ovs.ConfigNumber
	for _, d := range list {
		keys, configs = append(keys, d.Attachment.Attachment), append(configs, d.config)
	}
	config := slices.Max(configs)
	if slices.Contains(configs, 0) {
		config = 0 // when that one's row went nobody knows
	}
	if err := a.observe(LeftClosed, func() error { return a.closed(ctx, config) }); err != nil {
		return slices.Repeat([]error{err}, len(asked))
	}
	_ = a.observe(LeftLeases, func() error { pool.ReleaseAll(keys...); return nil })
	a.leaving.drop(keys)
	a.log.Debug("removed what was left of detached pods", "count", len(keys))
	return errs
}

// takeDown removes ports and devices; there is one error for each of list. It also returns
// what to wait for until the ports are closed, or that the database does not answer.
func (a *Attacher) takeDown(ctx context.Context, list []departure) (config ovs.ConfigNumber, errs []error, away error) {
	errs = make([]error, len(list))
	names := make([]string, len(list))
	for i, at := range list {
		names[i] = at.HostIf()
	}
	away = a.observe(LeftRows, func() (err error) {
		config, err = a.deletePorts(ctx, names, errs)
		return err
	})
	_ = a.observe(LeftDevices, func() error {
		for i, err := range a.kernel.DeleteAll(names) {
			errs[i] = errors.Join(errs[i], err)
		}
		return nil
	})
	// A device that is there may begin connections.
	_ = a.observe(LeftConnections, func() error { a.forget(list, errs); return nil })
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
// the node's NAT remembers: of many at once, and where that fails one by one.
func (a *Attacher) forget(list []departure, errs []error) {
	var addresses []netip.Addr
	var whose []int
	for i, at := range list {
		if !at.Address.IsValid() || errs[i] != nil {
			continue // what failed is tried again, all of it
		}
		addresses, whose = append(addresses, at.Address), append(whose, i)
		if at.Netns != "" {
			errs[i] = errors.Join(errs[i], a.kernel.Leave(Wire{Netns: at.Netns, IfName: at.IfName, Address: at.Address}))
		}
	}
	err := a.kernel.Forget(addresses...)
	if err == nil {
		return
	}
	for n, i := range whose {
		if len(whose) > 1 {
			err = a.kernel.Forget(addresses[n])
		}
		errs[i] = errors.Join(errs[i], err)
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
