// Package ipam gives out the addresses of the node subnet and remembers to
// whom, in one file. It knows nothing of interfaces: whether an address is on
// one is for its user to say, with the live leases it hands to [Open].
package ipam

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/pkg/batch"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Pool is the addresses of the node's subnets: one subnet, or one of each family. Who gets
// an address gets the one of the other subnet that belongs to it ([topology.Twin]). All methods may be called at once from
// several goroutines.
//
// Addresses are given out in order, each once, and only when none is left that
// was never used, those that were freed, the one freed longest ago first: what
// still remembers an address (a peer's connection, a name server's record)
// should have forgotten it before another pod, maybe another tenant's, has it.
type Pool struct {
	subnets []netip.Prefix
	bootID  string
	file    stateFile
	log     *slog.Logger
	now     func() time.Time
	// reusable reports whether a freed address may be given out again.
	reusable func(netip.Addr) bool

	mu sync.Mutex
	// order is what is free of the first subnet, and in which order it goes.
	order *order
	byKey map[cniapi.Attachment]Lease
	// byAddr is by first address.
	byAddr map[netip.Addr]cniapi.Attachment
	// encoded has every lease as it stands in the file.
	encoded map[netip.Addr][]byte
	// unsaved is why the file is not what the pool is; nil when it is.
	unsaved error

	// allocating and leaving let what comes at once be written once.
	allocating *batch.Batch[Lease, allocated]
	leaving    *batch.Batch[cniapi.Attachment, error]
}

// writtenAtOnce is how many changes are written down together.
const writtenAtOnce = 256

type allocated struct {
	lease Lease
	err   error
}

// Option changes how a Pool is opened.
type Option func(*Pool)

// WithLog sets where the pool reports what it puts right; slog.Default() is
// the default.
func WithLog(log *slog.Logger) Option { return func(p *Pool) { p.log = log } }

// WithReuse has freed addresses given out again only where reusable says so; without
// all are. It is called with the pool's lock held.
func WithReuse(reusable func(netip.Addr) bool) Option {
	return func(p *Pool) { p.reusable = reusable }
}

// Open reads the pool of subnets from its file in dir, which is made if need
// be, and brings it in line with live: the leases of all attachments that exist,
// and only of those, as [Stored] and OVSDB tell of them. BootID (/proc/sys/kernel/random/boot_id)
// tells whether the file is of this boot.
//
//   - A file that is missing, broken, or of another boot or subnet is forgotten
//     and the pool made from live. (Of another boot's, the place in the order is
//     kept, so that the new pods do not get the addresses of the old ones.)
//   - Otherwise the leases of both hold; where they contradict each other, live
//     wins, but for what only the file knows: since when it is, its MAC, its limits at
//     first, its Namespace's UID, and that it is leaving. A lease that only the file has stays: the attachment may exist though
//     OVSDB lost it. The runtime's DEL or GC releases it.
//
// There are one or two subnets, of IPv4 first; the pool's file is of the first. Open fails if
// one has no room for a pod. Where the file cannot be written the pool is there all the same, of what live
// and the file say, and gives out no address until it can be: [Pool.Writable].
func Open(dir string, subnets []netip.Prefix, bootID string, live []Lease, opts ...Option) (*Pool, error) {
	if err := fit(subnets); err != nil {
		return nil, fmt.Errorf("address pool: %w", err)
	}
	p := &Pool{
		subnets: subnets,
		bootID:  bootID,
		file:    newStateFile(dir),
		log:     slog.Default(),
		now:     time.Now,
		byKey:   make(map[cniapi.Attachment]Lease),
		byAddr:  make(map[netip.Addr]cniapi.Attachment),

		encoded:  make(map[netip.Addr][]byte),
		reusable: func(netip.Addr) bool { return true },
	}
	for _, o := range opts {
		o(p)
	}
	p.order = newOrder(subnets[0])
	p.allocating, p.leaving = batch.New(writtenAtOnce, p.allocate), batch.New(writtenAtOnce, p.leave)
	p.rebuild(live)
	err := p.save()
	if err != nil && (p.unsaved == nil || errors.Is(err, detached.Err)) {
		return nil, err
	}
	if err != nil {
		p.log.Warn("the address pool cannot be written down: going on with the pods that there are", "error", err)
	}
	return p, nil
}

// fit is nil where a pool can be made of subnets.
func fit(subnets []netip.Prefix) error {
	for _, s := range subnets {
		if !s.IsValid() || s.Bits() > s.Addr().BitLen()-2 || s.Masked() != s {
			return fmt.Errorf("%s is not a subnet with room for a gateway and a pod (/30, or /126 of IPv6, or larger)", s)
		}
	}
	switch {
	case len(subnets) == 1:
		return nil
	case len(subnets) != 2 || !subnets[0].Addr().Is4() || subnets[1].Addr().Is4():
		return fmt.Errorf("subnets %v are not one, or one of IPv4 and one of IPv6", subnets)
	case subnets[1].Bits() > 96:
		return fmt.Errorf("subnet %s has no room for the IPv4 addresses that its own follow from (/96 or larger)", subnets[1])
	}
	return nil
}

// Allocate gives want's attachment a lease, whatever addresses want has; the
// one it has, if it has one. The error is a *FullError, that the attachment is leaving,
// or that the lease could not be written down; then nothing is allocated.
func (p *Pool) Allocate(want Lease) (Lease, error) {
	done, err := p.allocating.Do(context.Background(), want)
	if err != nil {
		return Lease{}, err
	}
	return done.lease, done.err
}

// allocate gives addresses to several, and writes that once.
func (p *Pool) allocate(_ context.Context, wants []Lease) []allocated {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]allocated, len(wants))
	var fresh []int
	var undos []func()
	for i, want := range wants {
		if l, ok := p.byKey[want.Attachment()]; ok {
			out[i].lease = l
			if l.Leaving {
				out[i] = allocated{err: fmt.Errorf("attachment %s still has address %s, which it is leaving", l.Attachment(), l.first())}
			}
			continue
		}
		addr, undo, ok := p.order.take(p.reusable)
		if !ok {
			out[i].err = p.full()
			continue
		}
		want.Addresses, want.MAC, want.Since = p.with(addr), cniapi.MAC(topology.MAC(addr)), p.now().UTC().Round(0)
		p.put(want)
		out[i].lease, fresh, undos = want, append(fresh, i), append(undos, undo)
	}
	if len(fresh) == 0 {
		return out
	}
	if err := p.save(); err != nil {
		for k, i := range slices.Backward(fresh) {
			l := p.byKey[wants[i].Attachment()]
			p.remove(l)
			undos[k]()
		}
		for i, done := range out {
			if _, held := p.byKey[wants[i].Attachment()]; done.err == nil && !held {
				out[i] = allocated{err: fmt.Errorf("address %s cannot be leased to %s: %w", done.lease.first(), wants[i].Attachment(), err)}
			}
		}
	}
	return out
}

// with is an address of the first subnet, and what belongs to it of the second.
func (p *Pool) with(first netip.Addr) []netip.Addr {
	addresses := []netip.Addr{first}
	for _, s := range p.subnets[1:] {
		addresses = append(addresses, topology.Twin(s, first))
	}
	return addresses
}

// full is the error that no address is left; p.mu is held.
func (p *Pool) full() error {
	err := &FullError{Subnet: p.subnets[0], Leased: len(p.byKey), Waiting: p.order.free()}
	for _, l := range p.byKey {
		if l.Leaving {
			err.Leaving++
		}
	}
	return err
}

// Leave writes down that the attachment is leaving: should the agent be killed, the next
// one finds its lease so, and removes what is left. An attachment without a lease is no
// error; a *StorageError is, and then nothing is changed.
func (p *Pool) Leave(a cniapi.Attachment) error {
	err, _ := p.leaving.Do(context.Background(), a)
	return err
}

// leave marks several, and writes that once.
func (p *Pool) leave(_ context.Context, as []cniapi.Attachment) []error {
	p.mu.Lock()
	defer p.mu.Unlock()
	errs := make([]error, len(as))
	var marked []Lease
	for _, a := range as {
		if l, ok := p.byKey[a]; ok && !l.Leaving {
			marked = append(marked, l)
			l.Leaving = true
			p.put(l)
		}
	}
	if len(marked) == 0 {
		return errs
	}
	if err := p.save(); err != nil {
		for _, l := range marked {
			p.put(l)
		}
		for i := range errs {
			errs[i] = err
		}
	}
	return errs
}

// Release frees the address of an attachment and reports whether it had one.
//
// It cannot fail: the pool's file may still have the lease if it cannot be
// written now, but no other attachment gets the address without the file being
// written. A stale lease that an agent finds there after a crash costs one
// address until the runtime's next DEL or GC.
func (p *Pool) Release(a cniapi.Attachment) bool { return p.ReleaseAll(a) == 1 }

// ReleaseAll is Release of several, written once. It returns how many had an address.
func (p *Pool) ReleaseAll(as ...cniapi.Attachment) (released int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range as {
		if l, ok := p.byKey[a]; ok {
			released++
			p.remove(l)
			p.order.giveBack(l.first())
		}
	}
	if released == 0 {
		return 0
	}
	if err := p.save(); err != nil {
		p.log.Error("addresses are released, but not on disk", "count", released, "error", err)
	}
	return released
}

// SetNamespaceUIDs writes down in which Kubernetes Namespaces attachments are, by their UIDs. One
// without a lease is no error. As with [Pool.Release], what cannot be written now is written later.
func (p *Pool) SetNamespaceUIDs(uids map[cniapi.Attachment]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := false
	for a, uid := range uids {
		if l, ok := p.byKey[a]; ok && l.NamespaceUID != uid {
			l.NamespaceUID, changed = uid, true
			p.put(l)
		}
	}
	if !changed {
		return
	}
	if err := p.save(); err != nil {
		p.log.Error("the Namespaces of pods are known, but not on disk", "count", len(uids), "error", err)
	}
}

// Lookup returns the lease of an attachment.
func (p *Pool) Lookup(a cniapi.Attachment) (Lease, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.byKey[a]
	return l, ok
}

// Leases returns all leases, ordered by their first address.
func (p *Pool) Leases() []Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.leases()
}

// Free is how many addresses can still be allocated.
func (p *Pool) Free() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.order.free()
}

// Size is how many addresses for pods the subnet has: all but its network,
// gateway and broadcast addresses.
func (p *Pool) Size() int { return p.order.size() }

func (p *Pool) leases() []Lease {
	ls := make([]Lease, 0, len(p.byKey))
	for _, l := range p.byKey {
		ls = append(ls, l)
	}
	slices.SortFunc(ls, func(a, b Lease) int { return a.first().Compare(b.first()) })
	return ls
}

func (p *Pool) put(l Lease) {
	p.byKey[l.Attachment()] = l
	p.byAddr[l.first()] = l.Attachment()
	// A struct of strings, addresses and a time of our own clock: no error.
	p.encoded[l.first()], _ = json.Marshal(l.stored())
}

func (p *Pool) remove(l Lease) {
	delete(p.byKey, l.Attachment())
	delete(p.byAddr, l.first())
	delete(p.encoded, l.first())
}

// save writes the pool down.
func (p *Pool) save() error { return p.saveWith(0) }

// roomForMore is what Writable asks for beyond the leases that there are, bytes: a few more.
const roomForMore = 4096

// saveWith is save with so many blanks at the end.
func (p *Pool) saveWith(blanks int) error {
	start, scanned := p.order.position()
	h := header{Version: fileVersion, BootID: p.bootID, Subnet: p.subnets[0], Start: start, Scanned: scanned}
	data, err := encode(h, p.order.queue(), func(yield func([]byte) bool) {
		for _, addr := range slices.SortedFunc(maps.Keys(p.encoded), netip.Addr.Compare) {
			if !yield(p.encoded[addr]) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	p.unsaved = p.file.write(append(data, bytes.Repeat([]byte{' '}, blanks)...))
	if p.unsaved != nil {
		p.unsaved = &StorageError{Path: p.file.path, Cause: p.unsaved}
	}
	return p.unsaved
}

// Writable is nil when leases can be written down: a *StorageError, or what the file
// system says. It writes only where the last attempt failed, little room is left, or somebody
// deleted the file.
func (p *Pool) Writable() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unsaved == nil && p.file.there() && p.file.roomy() {
		return nil
	}
	return p.saveWith(roomForMore)
}

// rebuild fills a new pool from its file and from live.
func (p *Pool) rebuild(live []Lease) {
	st, err := p.file.read()
	known := p.log.With("path", p.file.path, "attached", len(live))
	switch {
	case errors.Is(err, errNoFile):
		known.Info("address pool has no file: building it from what is attached")
	case err != nil:
		known.Error("address pool's file is unusable: rebuilding it from what is attached", "error", err)
	case st.Subnet != p.subnets[0]:
		known.Warn("address pool's file is of another subnet: rebuilding it from what is attached", "subnet", p.subnets[0], "inFile", st.Subnet)
	case st.BootID != p.bootID:
		known.Info("address pool's file is of another boot: rebuilding it from what is attached", "forgotten", len(st.Leases))
		p.admitLive(live)
		p.order.startAt(st.Start, st.Scanned)
		return
	default:
		p.admitLive(live)
		p.admitStored(st.Leases)
		p.order.resume(st.Start, st.Scanned, st.Freed)
		return
	}
	p.admitLive(live)
	p.order.startAfter()
}

func (p *Pool) admitLive(live []Lease) {
	for _, l := range live {
		if l.Since.IsZero() {
			l.Since = p.now().UTC().Round(0)
		}
		if err := p.admit(l); err != nil {
			p.log.Error("an attached address cannot be in the pool: that pod has to be re-created",
				"addresses", l.Addresses, "sandbox", l.ContainerID, "ifName", l.IfName, "pod", l.PodNamespace+"/"+l.PodName, "error", err)
		}
	}
}

// admitStored takes in what does not contradict what is there.
func (p *Pool) admitStored(stored []Lease) {
	for _, l := range stored {
		if have, ok := p.byKey[l.Attachment()]; ok && have.first() == l.first() {
			have.Since, have.MAC, have.Limits, have.Leaving = l.Since, l.MAC, l.Limits, l.Leaving
			// A lease that an earlier release wrote down has neither.
			have.PodUID, have.NamespaceUID = cmp.Or(l.PodUID, have.PodUID), cmp.Or(l.NamespaceUID, have.NamespaceUID)
			p.put(have)
			continue
		}
		if err := p.admit(l); err != nil {
			p.log.Warn("address pool's file contradicts what is attached: keeping what is attached",
				"addresses", l.Addresses, "sandbox", l.ContainerID, "ifName", l.IfName, "error", err)
		}
	}
}

// admit takes in a lease that was made before.
func (p *Pool) admit(l Lease) error {
	if err := p.order.check(l.first()); err != nil {
		return err
	}
	// One that was made when there was one subnet stays as it is.
	if have := p.with(l.first()); len(l.Addresses) > 1 && !slices.Equal(l.Addresses, have) {
		return fmt.Errorf("addresses %v are not %v, which belong together in node subnets %v", l.Addresses, have, p.subnets)
	}
	if holder, ok := p.byAddr[l.first()]; ok && holder != l.Attachment() {
		return &TakenError{Holder: p.byKey[holder]}
	}
	if have, ok := p.byKey[l.Attachment()]; ok {
		if have.first() == l.first() {
			return nil
		}
		return fmt.Errorf("attachment %s has address %s already", l.Attachment(), have.first())
	}
	p.order.claim(l.first())
	p.put(l)
	return nil
}
