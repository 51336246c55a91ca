// Package policies has NetworkPolicies enforced on this node's pods: it follows the records
// that say so, knows which policies select which pod here, and gives their rules to the flow
// store. Which flows those are is package pipeline's; what selects a pod stands in the pod's
// own flows, which are nodeflows'. It never talks to the switch about flows, and writes no
// record but what the node says of its own pods.
//
// What is late is closed: a pod that is isolated may do what the rules allow that have come,
// and no more. What was in force stays as long as nobody says otherwise.
package policies

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// AreaName is that of the flows of this package.
const AreaName = "policy"

// readEvery is how often the switch is read back.
const readEvery = 30 * time.Second

// mostAtOnce bounds a bundle, so that pods that come and go wait for no large policy. Some rules of
// NetworkPolicies without the others allow less than all. Those of ClusterNetworkPolicies are an order
// of what denies and what allows, and are not divided.
const mostAtOnce = 4096

// kinds are those of owners, by the kind of their flows: a rule, and each clause that rules
// have.
var kinds = map[pipeline.Kind]flowstore.Kind{
	pipeline.KindRule: "rule", pipeline.KindSubject: "subject", pipeline.KindAllowed: "allowed", pipeline.KindPort: "port",
}

// Area is all flows of policies' rules.
func Area() flowstore.Area {
	cookie, mask := pipeline.Policies()
	return flowstore.Area{
		Name: AreaName, Cookie: cookie, Mask: mask, Kinds: slices.Sorted(maps.Values(kinds)), Every: readEvery,
		AtOnce: mostAtOnce, Together: pipeline.InOrder,
	}
}

const (
	// policiesLate is how long isolation of pods that run waits for rules as new as it is.
	policiesLate = 200 * time.Millisecond
	// firstRead is how long an ADD waits for the policies of a namespace that had no pod
	// here, rulesAtMost how long it waits for its rules to be in the switch.
	firstRead, rulesAtMost = time.Second, 200 * time.Millisecond
	// armedAtMost is how long an ADD waits for the rules that its pod's flows must not precede.
	armedAtMost = wholeAtMost + 5*time.Second
	// midstream is how long a pod that becomes selected may go on with connections that
	// nobody has committed: docs/policy.md, "Midstream".
	midstream = 120 * time.Second
	// wholeAtMost is how long a starting agent leaves the rules of before as they are
	// while records are missing.
	wholeAtMost = 10 * time.Second
	// staleAtMost is how long the datapath may go on with what it cached before a change.
	staleAtMost = time.Second
	// reuseAfter is how long nobody gets an address that was freed, besides that its removal
	// was acknowledged: so long nodes may take to follow.
	reuseAfter = 10 * time.Second
	// tellFor is how long the node goes on telling of its pods when the last policy is gone,
	// as one may come in its place.
	tellFor = 10 * time.Minute
)

// Store is where rules go; [flowstore.Store] is one.
type Store interface {
	Set(ctx context.Context, c flowstore.Change) (flowstore.Result, error)
	Read(ctx context.Context, area string) ([]of.FlowStats, error)
	Resync(ctx context.Context, area string) (flowstore.Result, error)
	Size(area string) int
	// FlushConnections makes the switch forget connections that it tracks.
	FlushConnections(ctx context.Context, filter of.CTFilter) error
}

// PodFlows are pods' own flows; [nodeflows.Table] has them.
type PodFlows interface {
	// SetPolicies says what selects pods, by their ports. Others are left as they are.
	SetPolicies(ctx context.Context, pods map[uint32]pipeline.PodPolicy) error
}

// Attached are the pods of the node; [attach.Attacher] has them.
type Attached interface{ List() []attach.Attachment }

// Outside drops what pods send past the switch, by the node's translation, where policies do not let
// them; [hostnet.Judge] does. It is called by one goroutine at a time.
type Outside interface {
	Set(ctx context.Context, want hostnet.Senders) error
	// Forget has the next Set read what is there.
	Forget()
}

// Follower tells of the records; [store.PolicyFollower] does.
type Follower interface {
	// Want says which namespaces' policies, and which sets, are to be told of.
	Want(namespaces, sets []string)
	Updates() <-chan store.PolicyView
}

// Config is what a table needs.
type Config struct {
	Host   string
	HostIP netip.Addr
	Store  Store
	Pods   PodFlows
	// Attached are the pods that have their ports.
	Attached Attached
	// Outside judges what the node translates. NodeServes says that the node's proxy translates the
	// service network for pods, too.
	Outside    Outside
	NodeServes bool
	// Publish, if not nil, is given what the node tells of its pods, when that changed. It
	// must not wait for anything.
	Publish func(topology.NodePods)
	Metrics *Metrics
	Logger  *slog.Logger
	// Now is a clock; nil for time.Now.
	Now func() time.Time
}

// Table is what policies come to on one node. Its methods may be called at once.
type Table struct {
	cfg Config

	// compiling is held from when it is taken what there is to do until it is done, so that nothing
	// older comes behind it, and guards outside. writing is held by who changes the switch, and guards
	// writer; who has it waits for the switch and the node's firewall alone, and for nothing that is found
	// out of policies. They are taken in this order, before mu.
	compiling, writing sync.Mutex
	outside            outside
	writer

	mu sync.Mutex
	picture
	// start is the copy on disk, until records are told; lost is what [Table.Lost] says.
	start Copy
	lost  topology.Point
	interest
	labels
	progress
	kept
	nodes nodes
	// noSCTPPorts is that the datapath does not know them.
	noSCTPPorts bool
	// started is when the table was made. freed are addresses that nobody may have yet.
	started time.Time
	freed   addresses
	// left are the addresses of pods that left and are not forgotten, with whether the switch
	// may know connections of them.
	left map[netip.Addr]bool
	// denying is what ClusterNetworkPolicies come to.
	denying policy.Compiled

	// wake holds one element after a change.
	wake chan struct{}
}

// interest is who tells of the records, and what of them it was told to.
type interest struct {
	follower Follower
	wanted   wanted
	// ahead is what the copy on disk has: it was needed before the start, and will most likely be
	// again. It is asked for until the rules can be told as a whole.
	ahead wanted
}

// labels are what others say of the node's pods.
type labels struct {
	// shown are the node's pods as the API server has them; nil before it has told. early
	// are those that were read before they are shown.
	shown, early map[kube.PodKey]kube.Pod
	// copied are what the copy on disk says of pods, by address.
	copied map[netip.Addr]CopiedPod
}

// progress is how far the switch is.
type progress struct {
	// asked numbers changes, done is the newest that is in the switch, ruled the newest whose
	// rules are, barred the newest that the way past the switch follows. since is when the oldest news of records came that are not; zero where there are
	// none.
	asked, done, ruled, barred uint64
	since                      time.Time
	// expected is that what was told of nodes is not in the flows of pods yet: rules wait for that.
	expected bool
	// settled is closed, and another one made, when something came of changes; seen, when
	// records came.
	settled, seen chan struct{}
	// why is what keeps the switch from following.
	why error
}

// nodes are what rules depend on of other nodes.
type nodes struct {
	network netip.Prefix
	list    []topology.Node
	own     topology.Node
	// services is the service network.
	services netip.Prefix
	// version grows with every change.
	version int
}

// New makes a table that knows of nothing.
func New(cfg Config) *Table {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Table{
		cfg: cfg, picture: newPicture(), outside: newOutside(), writer: newWriter(), progress: progress{settled: make(chan struct{}), seen: make(chan struct{})},
		started: cfg.Now(), freed: newAddresses(), left: map[netip.Addr]bool{}, labels: labels{early: map[kube.PodKey]kube.Pod{}}, wake: make(chan struct{}, 1),
	}
}

// changed notes that there is something to do; mu is held.
func (t *Table) changed() {
	t.asked++
	t.want()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// want tells the follower what is needed, where that is something else; mu is held.
func (t *Table) want() {
	if t.follower == nil {
		return
	}
	need := t.needs()
	if t.told { // not before: the first answer has all that was asked for by then, and pods wait for it
		need = need.and(t.ahead)
	}
	if slices.Equal(need.namespaces, t.wanted.namespaces) && slices.Equal(need.sets, t.wanted.sets) {
		return
	}
	t.wanted = need
	t.follower.Want(need.namespaces, need.sets)
}

// See takes in the newest records.
func (t *Table) See(v store.PolicyView) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.cfg.Now()
	if t.since.IsZero() {
		t.since = now
	}
	v, news := t.newest(v)
	if !news {
		return
	}
	t.see(v, now)
	t.freed.acknowledge(v.Acknowledged)
	t.changed()
	close(t.seen)
	t.seen = make(chan struct{})
}

// newest is what to take in where etcd has v. Where etcd went back to older records than were
// there before, those stay: they are no news, but for those of the copy at the start.
func (t *Table) newest(v store.PolicyView) (view store.PolicyView, news bool) {
	copied := t.start.view()
	if t.told {
		copied = t.view
	}
	if v.History.Holds(copied.History.Now) || v.History.Now == copied.History.Now {
		t.lost = topology.Point{}
		return v, true
	}
	t.lost = copied.History.Now
	return copied, !t.told
}

// Lost is the newest write of a leader that the table has taken in, where etcd has lost it: it
// went back to older records.
func (t *Table) Lost() topology.Point {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost
}

// Expect takes in records ahead, at a start, before they are in the flows of pods: what policies come to by
// them is found out beside what the node does until then, and is not in the switch before SetRecords.
func (t *Table) Expect(s topology.Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.nodes.version == 0 {
		t.expected = true
		t.setNodes(nodesOf(s, t.cfg.HostIP))
	}
}

// SetRecords takes in what rules follow from besides: the cluster network and its nodes.
func (t *Table) SetRecords(s topology.Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fresh := nodesOf(s, t.cfg.HostIP)
	if t.nodes.version == 0 || fresh.network != t.nodes.network || fresh.services != t.nodes.services || !slices.EqualFunc(fresh.list, t.nodes.list, sameNode) {
		t.setNodes(fresh)
	}
	if t.expected {
		t.expected = false
		t.changed()
	}
}

// setNodes makes other nodes than before those that rules depend on; mu is held.
func (t *Table) setNodes(fresh nodes) {
	fresh.version = t.nodes.version + 1
	t.nodes = fresh
	for name, space := range t.spaces {
		for n := range space.policies {
			t.soil(name, []string{n})
		}
	}
	t.dirty[clusterKey] = true
	t.changed()
}

// SetLacks says what of policies the datapath does not know: see [Lacks].
func (t *Table) SetLacks(lacks []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if none := slices.Contains(lacks, topology.LacksSCTPPorts); none != t.noSCTPPorts {
		t.noSCTPPorts, t.dirty[clusterKey] = none, true
		t.changed()
	}
}

// nodesOf are those that have a subnet, in order of their addresses.
func nodesOf(s topology.Snapshot, self netip.Addr) nodes {
	n := nodes{network: s.Config.Network, services: s.Config.ServiceNetwork, own: s.Nodes[self]}
	for _, one := range s.Nodes {
		if one.Ready() {
			n.list = append(n.list, one)
		}
	}
	slices.SortFunc(n.list, func(a, b topology.Node) int { return a.HostIP.Compare(b.HostIP) })
	return n
}

func sameNode(a, b topology.Node) bool { return a.HostIP == b.HostIP && a.Subnet == b.Subnet }

// Seen takes in a pod of the node before the API server's watch shows it.
func (t *Table) Seen(p kube.Pod) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.early[p.PodKey] = p
}

// Shown takes in the node's pods as the API server's watch shows them, all of them.
func (t *Table) Shown(pods map[kube.PodKey]kube.Pod) {
	t.mu.Lock()
	defer t.mu.Unlock()
	news := t.shown == nil // it was not known before what selects pods
	t.shown = pods
	maps.DeleteFunc(t.early, func(key kube.PodKey, early kube.Pod) bool { return pods[key].UID == early.UID })
	for _, one := range t.pods {
		news = t.read(one) || news
	}
	if news {
		t.changed()
	}
}

// read takes a pod's labels from what the API server shows, and reports whether that is news.
func (t *Table) read(one *pod) bool {
	key := kube.PodKey{Namespace: one.Namespace, Name: one.Name}
	shown, ok := t.shown[key]
	if !ok || !shown.Is(one.UID) {
		shown, ok = t.early[key]
	}
	if !ok || !shown.Is(one.UID) || !t.label(one, shown.Labels, t.cfg.Now()) {
		return false
	}
	one.asked = t.asked + 1
	return true
}

// Load implements [attach.Policies]: these were attached before the agent started. Where the
// copy on disk knows them they go on with what it has.
func (t *Table) Load(all []attach.Attachment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for a := range t.pods {
		t.leave(a)
	}
	now := t.cfg.Now()
	for _, at := range all {
		p, ok := podOf(at, at.UIDs.Pod)
		if !ok {
			continue
		}
		before, known := t.copied[p.Address]
		known = known && before.Namespace == p.Namespace && before.Name == p.Name && cmp.Or(p.UID, before.UID) == cmp.Or(before.UID, p.UID)
		// A copy lacks those that came just before it was to be made.
		one := &pod{Pod: p, tracked: before.Selected && known || !known && len(t.copied) > 0}
		if known {
			one.UID, one.labels, one.labelled = cmp.Or(one.UID, before.UID), before.Labels, before.Labelled
		}
		one.loaded = true
		t.enter(one, now)
		t.read(one)
		if one.selected.Selected() && !(known && before.Selected) {
			one.midstream = now.Add(midstream)
		}
	}
	t.changed()
}

// podOf is the pod of an attachment; false where it has no IPv4 address.
func podOf(at attach.Attachment, uid string) (Pod, bool) {
	i := slices.IndexFunc(at.Addresses, netip.Addr.Is4)
	if i < 0 {
		return Pod{}, false
	}
	return Pod{at.Namespace, at.Pod, uid, at.Addresses[i]}, true
}

// of is the pod of an attachment as it is known; mu is held.
func (t *Table) of(at attach.Attachment) (*pod, bool) {
	p, ok := podOf(at, "")
	if !ok {
		return nil, false
	}
	one, ok := t.pods[p.Address]
	return one, ok && one.key() == p.key()
}

// Enter implements [attach.Policies]. It returns at once where no policy is about pods of the
// namespace; else when the policies of the namespace were read, and it is known which
// ClusterNetworkPolicies are about it, at the latest after [firstRead]: what comes later opens what
// is closed until then.
func (t *Table) Enter(ctx context.Context, at attach.Attachment, uid string) {
	p, ok := podOf(at, uid)
	if !ok {
		return
	}
	t.mu.Lock()
	one := &pod{Pod: p, fresh: true, asked: t.asked + 1}
	t.enter(one, t.cfg.Now())
	t.read(one)
	t.freed.take(p.Address)
	delete(t.left, p.Address)
	t.changed()
	s := t.spaces[p.Namespace]
	waits := t.unread(s)
	t.mu.Unlock()
	if waits {
		t.awaitRead(ctx, s)
		t.mu.Lock()
		one.asked = t.asked
		t.mu.Unlock()
	}
}

// unread reports whether something of a namespace was not read yet that selects its pods.
func (p *picture) unread(s *space) bool { return p.unknown(s) || !s.read && len(s.newest) > 0 }

// awaitRead returns when nothing of a namespace is unread, or after [firstRead].
func (t *Table) awaitRead(ctx context.Context, s *space) {
	ctx, cancel := context.WithTimeout(ctx, firstRead)
	defer cancel()
	for {
		t.mu.Lock()
		unread, seen := t.unread(s), t.seen
		t.mu.Unlock()
		if !unread {
			return
		}
		select {
		case <-seen:
		case <-ctx.Done():
			return
		}
	}
}

// Selection implements [attach.Policies]. After the first time it is what the pod's flows
// have: others than these come by [PodFlows] alone, in their order with rules.
func (t *Table) Selection(at attach.Attachment) pipeline.PodPolicy {
	t.mu.Lock()
	defer t.mu.Unlock()
	one, ok := t.of(at)
	if !ok {
		return pipeline.PodPolicy{}
	}
	if !one.told {
		one.given, one.told = one.policy(t.cfg.Now()), true
		one.tracked = one.tracked || one.given.Selected()
	}
	return one.given
}

// Arm implements [attach.Policies]. It fails with what keeps the rules from where they belong.
func (t *Table) Arm(ctx context.Context, at attach.Attachment) error {
	ctx, cancel := context.WithTimeout(ctx, armedAtMost)
	defer cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	one, ok := t.of(at)
	if !ok {
		return nil
	}
	for t.pods[one.Address] == one && t.unarmed(one) {
		news := t.settled
		t.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
		}
		t.mu.Lock()
		if t.unarmed(one) && (ctx.Err() != nil || errors.Is(t.why, flowstore.ErrDisconnected)) {
			return fmt.Errorf("rules of policies about %s/%s are not in the switch, or in the node's firewall: %w", one.Namespace, one.Name, cmp.Or(t.why, ctx.Err()))
		}
	}
	return nil
}

// unarmed reports whether something is missing that must be there before the pod's flows: rules of
// ClusterNetworkPolicies, as nothing else denies, and what closes its way past the switch, which the
// pod's flows know nothing of.
func (t *Table) unarmed(one *pod) bool {
	return one.selected.Cluster && t.ruled < one.asked || sends(one.selected.PodPolicy) && t.barred < one.asked
}

// Denies reports whether ClusterNetworkPolicies are about pods here: without the rules, these
// pods' own flows let through what is denied.
func (t *Table) Denies() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, one := range t.pods {
		if one.selected.Cluster {
			return true
		}
	}
	return false
}

// Await implements [attach.Policies]. What the pod is to be allowed and is not in the switch
// by then follows. It returns at once where no policy selects the pod.
func (t *Table) Await(ctx context.Context, at attach.Attachment) {
	ctx, cancel := context.WithTimeout(ctx, rulesAtMost)
	defer cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	one, ok := t.of(at)
	if !ok {
		return
	}
	if one.policy(t.cfg.Now()) != one.given { // it had no port yet when that changed
		one.asked = t.asked + 1
		t.changed()
	}
	for ctx.Err() == nil && t.pods[one.Address] == one && (one.selected.Selected() || one.given.Selected()) {
		lacks := t.lacks(one)
		if !lacks && t.done >= one.asked {
			return
		}
		news := t.settled
		if lacks {
			news = t.seen
		}
		t.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
		}
		t.mu.Lock()
		if lacks {
			one.asked = t.asked
		}
	}
}

// Leave implements [attach.Policies]. The address may be given out again when
// [Table.Reusable] says so.
func (t *Table) Leave(at attach.Attachment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one, ok := t.of(at)
	if !ok {
		return
	}
	t.left[one.Address] = one.tracked
	t.leave(one.Address)
	delete(t.early, kube.PodKey{Namespace: one.Namespace, Name: one.Name})
	t.freed.free(one.Address, t.cfg.Now())
	t.changed()
}

// Reusable reports whether an address that was freed may be given to another pod: no node
// counts it any more among the members of a set.
func (t *Table) Reusable(a netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.any() || t.freed.reusable(a, t.started, t.cfg.Now())
}

// Published says which record of the node's pods stands in etcd, at which revision.
func (t *Table) Published(n topology.NodePods, revision int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.freed.published(n, revision)
}

// Known is nil when it is known which pods policies select: before that nobody may touch
// pods' flows, as those from before say it. Where the API server has not shown the node's
// pods labels are those of the copy on disk.
func (t *Table) Known() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case !t.told:
		return errNotTold
	case !t.labelsKnown(t.cfg.Now()):
		return errNotShown
	}
	return nil
}

// labelsKnown reports whether pods' labels are what the API server shows, or what the copy on disk has
// as it has shown none for long; mu is held.
func (t *Table) labelsKnown(now time.Time) bool {
	return t.shown != nil || !t.any() || !now.Before(t.started.Add(labelsAtMost))
}

// Ready is nil when policies are enforced as the records say.
func (t *Table) Ready() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.told {
		return errNotTold
	}
	if t.why != nil {
		return t.why
	}
	if late := t.lateSets(); late > 0 {
		return lateError(late)
	}
	return nil
}

// Follow takes in what f tells until it ends.
func (t *Table) Follow(f Follower) {
	t.mu.Lock()
	t.follower = f
	t.want()
	t.mu.Unlock()
	for v := range f.Updates() {
		t.See(v)
	}
}
