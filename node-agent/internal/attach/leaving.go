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

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/ipam"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/batch"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

const (
	// calm is how long nothing is attached or detached before what is left of pods is
	// removed: pods that come would wait for the kernel's lock of devices, and for ovs-vswitchd,
	// which looks at all its ports (10 ms with 200) when devices go and again when ports go,
	// however many there are of them.
	calm = 200 * time.Millisecond
	// closePart is the part of the ports that ovs-vswitchd is told to close at once, at least
	// one. It waits for each until no processor uses its socket any more (15 ms with the
	// userspace datapath), and takes neither ports nor flows meanwhile: so long pods that
	// come, and all news, wait.
	closePart = 16
	// leavingAtMost is how long it may be left: then it is removed in the first moment in which nothing
	// is attached or detached. After twice that, and with leavingPods, it is removed however much comes and goes.
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
	// closing holds one element after something was taken down, or ended.
	closing chan struct{}
	// downs takes down what is in the list, closes what is down: all of it, or a part.
	downs  *batch.Batch[struct{}, remains]
	closes *batch.Batch[bool, error]

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
	// down is that its devices are gone. Its address may be given out when the switch has
	// closed its port.
	down bool
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
	tell(l.closing)
}

// tell wakes whoever waits for news; each has one who does.
func tell(news chan struct{}) {
	select {
	case news <- struct{}{}:
	default:
	}
}

// due waits until there is something to take down, and then for a quiet time. Where that does
// not come soon any moment will do, and then any at all: what is attached meanwhile waits for
// the lock of devices. What was tried before waits for retry.
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
	quiet, more := time.NewTimer(calm), time.NewTimer(leavingAtMost)
	defer quiet.Stop()
	defer more.Stop()
	began, late := false, false
	for {
		waiting, active := state()
		switch {
		case waiting >= leavingPods || late && waiting > 0 && active == 0:
			return nil
		case waiting == 0:
			began, late = false, false
		case !began:
			began = true
			more.Reset(leavingAtMost)
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
		case <-more.C:
			if late && waiting > 0 {
				return nil
			}
			late = waiting > 0
			more.Reset(leavingAtMost)
		}
	}
}

// closable waits until there are ports to close, and then until nothing comes or goes, but
// not long. What failed waits for retry.
func (l *leaving) closable(ctx context.Context, retry <-chan time.Time) error {
	if retry != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-retry:
			return nil
		}
	}
	late := time.NewTimer(leavingAtMost)
	defer late.Stop()
	for began := false; ; {
		down, now := l.ports()
		switch {
		case now:
			return nil
		case down && !began:
			late.Reset(leavingAtMost)
		}
		began = down
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.closing:
		case <-late.C:
			if down {
				return nil
			}
		}
	}
}

// ports reports whether there are ports to close, and whether that is to be done now.
func (l *leaving) ports() (any, now bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.list {
		any = any || d.down
	}
	return any, any && (l.active == 0 || len(l.list) >= leavingPods)
}

// remains is what could not be taken down.
type remains struct {
	// err is why nothing was tried; each says what is still there of which attachment.
	err  error
	each map[cniapi.Attachment]error
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
// not wait for closing: that takes long with many, and ovs-vswitchd may be away.
func (a *Attacher) Run(ctx context.Context) error {
	var closing sync.WaitGroup
	closing.Go(func() {
		_ = a.repeat(ctx, "the addresses of pods that were detached cannot be given out yet", a.leaving.closable, func(ctx context.Context) error {
			return a.close(ctx, aPart)
		})
	})
	err := a.repeat(ctx, "what is left of pods that were detached cannot be removed yet", a.leaving.due, func(ctx context.Context) error {
		return a.down(ctx).all()
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
		closeErr := a.close(ctx, everything)
		if a.leaving.has(key) {
			return still(key, errors.Join(r.of(key), closeErr))
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

// finish removes what there is of all that are leaving: devices, ports, and then leases.
func (a *Attacher) finish(ctx context.Context) error {
	return errors.Join(a.down(ctx).all(), a.close(ctx, everything))
}

// down takes down all that are leaving: no device of theirs is left. It is one run for all who ask meanwhile, which
// begins after the last of them has.
func (a *Attacher) down(ctx context.Context) remains {
	r, err := a.leaving.downs.Do(ctx, struct{}{})
	if err != nil {
		r.err = fmt.Errorf("waiting for pods that are leaving: %w", err)
	}
	return r
}

// aPart and everything are how many of those that were taken down are closed in one run.
const (
	aPart      = false
	everything = true
)

// close has ports closed of what was taken down, and gives their addresses back; as with
// down it is one run for all who ask.
func (a *Attacher) close(ctx context.Context, all bool) error {
	err, notBegun := a.leaving.closes.Do(ctx, all)
	return errors.Join(err, notBegun)
}

// downAll is a run of down.
func (a *Attacher) downAll(ctx context.Context, asked []struct{}) []remains {
	defer a.bare.Hold()()
	r := remains{each: map[cniapi.Attachment]error{}}
	list := a.leaving.those(false)
	if _, _, err := a.known(); err == nil && len(list) > 0 { // before Start there is nothing to finish
		errs := a.takeDown(list)
		for i := range list {
			d := &list[i]
			if errs[i] != nil {
				r.each[d.Attachment.Attachment] = errs[i]
			}
			d.down, d.tried = errs[i] == nil, errs[i] != nil
		}
		a.leaving.set(list)
	}
	return slices.Repeat([]remains{r}, len(asked))
}

// closeAll is a run of close.
func (a *Attacher) closeAll(ctx context.Context, asked []bool) []error {
	defer a.bare.Hold()()
	list := a.leaving.those(true)
	if !slices.Contains(asked, everything) {
		list = list[:(len(list)+closePart-1)/closePart]
	}
	_, pool, err := a.known()
	if err != nil || len(list) == 0 {
		return make([]error, len(asked))
	}
	return slices.Repeat([]error{a.closePorts(ctx, pool, list)}, len(asked))
}

// closePorts takes ports out of the database, waits until the switch has closed them, and
// gives their addresses back.
func (a *Attacher) closePorts(ctx context.Context, pool *ipam.Pool, list []departure) error {
	names, errs := make([]string, len(list)), make([]error, len(list))
	for i, d := range list {
		names[i] = d.HostIf()
	}
	var config ovs.ConfigNumber
	err := a.observe(LeftRows, func() (err error) {
		config, err = a.deletePorts(ctx, names, errs)
		return err
	})
	if err == nil {
		err = a.observe(LeftClosed, func() error { return a.closed(ctx, config) })
	}
	if err != nil {
		return err
	}
	var keys []cniapi.Attachment
	var addresses []netip.Addr
	for i, d := range list {
		if key := d.Attachment.Attachment; errs[i] != nil {
			errs[i] = fmt.Errorf("attachment %s: %w", key, errs[i])
		} else {
			keys, addresses = append(keys, key), append(addresses, d.Addresses...)
		}
	}
	// Nobody sends from them or to them any more.
	if err := a.policies.Forget(ctx, addresses...); err != nil {
		return err
	}
	_ = a.observe(LeftLeases, func() error { pool.ReleaseAll(keys...); return nil })
	a.leaving.drop(keys)
	a.log.Debug("removed what was left of detached pods", "count", len(keys))
	return errors.Join(errs...)
}

// takeDown removes devices, and what is left of them elsewhere; there is one error for each
// of list.
func (a *Attacher) takeDown(list []departure) (errs []error) {
	names := make([]string, len(list))
	for i, d := range list {
		names[i] = d.HostIf()
	}
	_ = a.observe(LeftDevices, func() error { errs = a.kernel.DeleteAll(names); return nil })
	// A device that is there may begin connections.
	_ = a.observe(LeftConnections, func() error { a.forget(list, errs); return nil })
	return errs
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
		if errs[i] != nil {
			continue // what failed is tried again, all of it
		}
		for _, address := range at.Addresses {
			addresses, whose = append(addresses, address), append(whose, i)
		}
		if at.Netns != "" {
			errs[i] = errors.Join(errs[i], a.kernel.Leave(Wire{Netns: at.Netns, IfName: at.IfName, Addresses: at.Addresses}))
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
