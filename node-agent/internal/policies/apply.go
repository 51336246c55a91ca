package policies

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// writer is what is known of the switch. Who has [Table.writing] has it.
type writer struct {
	rules *pipeline.Rules
	// complete is that the store was told of all rules, behind that it may not have brought
	// all into the switch.
	complete, behind bool
	// ready are all rules as they are now, made ahead; nil where they are not.
	ready []pipeline.RuleOwner
	// empty is that the switch has no rules, looked that this is known.
	empty, looked bool
	// flushes are the addresses whose connections are to be forgotten.
	flushes map[netip.Addr]flush
	noFlush bool // the switch cannot flush connections
	barrier barrier
	// flows are at most how many each policy has, where it has some.
	flows map[policy.Key]int
	// tooLarge are the policies that were told of as being too large.
	tooLarge map[policy.Key]bool
}

func newWriter() writer {
	return writer{rules: pipeline.NewRules(), flushes: map[netip.Addr]flush{}, flows: map[policy.Key]int{}, tooLarge: map[policy.Key]bool{}}
}

// work is what there is to do at one time.
type work struct {
	asked uint64
	since time.Time
	// jobs are the policies to be compiled, with what they were where that counts as well; none
	// for those that say nothing.
	jobs map[policy.Key][]policy.Policy
	// cluster are the ClusterNetworkPolicies; nil where they come to what they did.
	cluster *clusterJob
	nodes   nodes
	// known are the pods of this node, unknown those of them whose labels nobody knows;
	// members are those of all sets.
	known, unknown []policy.Pod
	members        map[string]setMembers
	// pods are what selects each, news that some of their flows say otherwise. whose are the pods that
	// had these addresses: by the time that work is done another may have one of them.
	pods  map[netip.Addr]pipeline.PodPolicy
	whose map[netip.Addr]*pod
	news  bool
	// loaded are those that were there before the agent started.
	loaded map[netip.Addr]bool
	// unselected are the pods that were selected, and whose connections the switch may know.
	unselected []netip.Addr
	// open is that the rules may be told to the store as a whole, certain that pods' labels are
	// known, denies that ClusterNetworkPolicies are about pods.
	open, certain, denies bool
	// expected is that nothing of it is to be written yet.
	expected bool
}

const (
	// firstPause and lastPause bound the pause after what failed.
	firstPause, lastPause = 20 * time.Millisecond, 2 * time.Second
	// applyTimeout bounds one change of the switch.
	applyTimeout = 10 * time.Second
)

// Run brings what changes into the switch until ctx ends, and has keep write down what a
// start without etcd needs.
func (t *Table) Run(ctx context.Context, keep func(Copy)) error {
	pauses := backoff.Pauses{First: firstPause, Last: lastPause}
	var trouble backoff.Trouble
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.wake:
		case <-timer.C:
		}
		err := t.Apply(ctx)
		if c, due := t.copyDue(); due {
			keep(c)
		}
		wait := t.next()
		if err == nil {
			pauses.Reset()
		} else {
			wait = min(wait, pauses.Next())
		}
		if trouble.News(err) && ctx.Err() == nil && !away(err) {
			t.cfg.Logger.Error("policies are not in the flows as they should be: trying again", "error", err)
		}
		timer.Reset(wait)
	}
}

// away reports whether nothing can be written now, whatever it is.
func away(err error) bool {
	return errors.Is(err, flowstore.ErrDisconnected) || errors.Is(err, flowstore.ErrNotReady)
}

// Apply brings what changed into the switch.
func (t *Table) Apply(ctx context.Context) error {
	t.compiling.Lock()
	defer t.compiling.Unlock()
	w, ok := t.prepare()
	if !ok {
		return nil
	}
	compiled := w.compile()
	found := t.findOutside(w, compiled)
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	t.writing.Lock()
	defer t.writing.Unlock()
	ruled, err := t.write(ctx, w, compiled, found)
	t.finish(w, ruled, err)
	return err
}

// Connected says that the switch is another one. One that was there before has forgotten
// whose connections are whose.
func (t *Table) Connected(ctx context.Context) error {
	t.writing.Lock()
	t.noFlush, t.behind, t.looked = false, true, false
	t.writing.Unlock()
	return t.Apply(ctx)
}

// Forgotten says that the switch has lost the connections that it tracked.
func (t *Table) Forgotten() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, one := range t.pods {
		if one.selected.Selected() {
			one.midstream = t.cfg.Now().Add(midstream)
		}
	}
	t.changed()
}

// Resync puts right what differs in the switch from what is wanted.
func (t *Table) Resync(ctx context.Context) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	if !t.complete {
		return nil
	}
	if err := t.barrier.resync(ctx, t.cfg.Outside); err != nil {
		return wrap(err)
	}
	t.mu.Lock()
	pods, whose := map[netip.Addr]pipeline.PodPolicy{}, maps.Clone(t.pods)
	for a, one := range t.pods {
		pods[a] = one.given
	}
	t.mu.Unlock()
	// A port may have got another number while its pod's selection changed.
	if err := t.tellPods(ctx, pods, whose); err != nil {
		return err
	}
	_, err := t.cfg.Store.Resync(ctx, AreaName)
	t.behind = err != nil
	return wrap(err)
}

// prepare takes what there is to do; false where it cannot be known yet.
func (t *Table) prepare() (work, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.told || t.nodes.version == 0 {
		return work{}, false
	}
	now := t.cfg.Now()
	t.settle(now)
	open := t.whole() || !now.Before(t.started.Add(wholeAtMost))
	if open {
		t.ahead = wanted{}
	}
	t.want()
	w := work{
		asked: t.asked, since: t.since, jobs: map[policy.Key][]policy.Policy{}, nodes: t.nodes, members: maps.Clone(t.members),
		whose: maps.Clone(t.pods), pods: map[netip.Addr]pipeline.PodPolicy{}, loaded: map[netip.Addr]bool{}, open: open, certain: t.labelsKnown(now), expected: t.expected,
	}
	t.since = time.Time{}
	if t.complete || open || !t.allFromBefore() {
		t.takeJobs(&w)
	}
	w.known, w.unknown = t.labelled()
	for a, one := range t.pods {
		if one.told && one.selected.Selected() && !one.given.Selected() {
			one.midstream = now.Add(midstream)
		}
		w.pods[a], w.loaded[a] = one.policy(now), one.loaded
		w.denies = w.denies || w.pods[a].Cluster
		w.news = w.news || one.told && w.pods[a] != one.given
		if one.tracked = one.tracked || w.pods[a].Selected(); one.tracked && !w.pods[a].Selected() {
			w.unselected = append(w.unselected, a)
		}
	}
	t.publish()
	return w, true
}

// allFromBefore reports whether all pods were there before the agent started, and none needs rules
// ahead of its flows: until the rules can be told as a whole, nobody needs what policies come to.
func (t *Table) allFromBefore() bool {
	for _, one := range t.pods {
		if !one.loaded || one.selected.Cluster {
			return false
		}
	}
	return true
}

// takeJobs takes the policies that may come to something else.
func (t *Table) takeJobs(w *work) {
	for key := range t.dirty {
		if key == clusterKey {
			w.cluster = t.clusterJob()
			w.cluster.noSCTPPorts = t.noSCTPPorts
		} else {
			w.jobs[key] = t.says(key)
		}
	}
	clear(t.dirty)
}

// says is a policy that counts, with what it was where that does too; none for others.
func (p *picture) says(key policy.Key) []policy.Policy {
	s, ok := p.spaces[key.Namespace]
	if !ok {
		return nil
	}
	r, ok := s.counts(key.Name)
	switch {
	case !ok:
		return nil
	case r.was != nil:
		return []policy.Policy{r.Policy, r.was.Policy}
	}
	return []policy.Policy{r.Policy}
}

// labelled are the pods here, and apart from them those whose labels nobody knows.
func (p *picture) labelled() (known, unknown []policy.Pod) {
	for _, one := range p.pods {
		subject := policy.Pod{Key: one.key(), Labels: one.labels, Member: policy.Member{Address: one.Address}}
		if one.labelled {
			known = append(known, subject)
		} else {
			unknown = append(unknown, subject)
		}
	}
	return known, unknown
}

// input is what the meaning of policies for some subjects follows from.
func (w work) input(subjects []policy.Pod) policy.Input {
	return policy.Input{
		Subjects: subjects, Network: w.nodes.network, Nodes: w.nodes.list, Own: w.nodes.own,
		Members: func(s policy.Set) ([]policy.Member, bool) {
			m := w.members[s.Hash()]
			return m.list, m.whole
		},
	}
}

// compile is what the policies of work come to.
func (w work) compile() map[policy.Key]policy.Compiled {
	known, unknown := policy.NewCompiler(w.input(w.known)), policy.NewCompiler(w.input(w.unknown))
	compiled := map[policy.Key]policy.Compiled{}
	if w.cluster != nil {
		compiled[clusterKey] = w.cluster.compile(w.input(slices.Concat(w.known, w.unknown)))
	}
	for key, job := range w.jobs {
		if len(job) == 0 {
			compiled[key] = policy.Compiled{}
			continue
		}
		c := known.Compile(job, nil)
		// Those whose labels nobody knows are isolated by every policy of their namespace, and
		// allowed what all of its pods are: another's openness is not theirs.
		all := slices.DeleteFunc(slices.Clone(job), func(p policy.Policy) bool { return p.Subject != "" })
		more := unknown.Compile(all, nil)
		c.Ingress.Allows = merge(c.Ingress.Allows, more.Ingress.Allows)
		c.Egress.Allows = merge(c.Egress.Allows, more.Egress.Allows)
		c.TooLarge = append(c.TooLarge, more.TooLarge...)
		compiled[key] = c
	}
	return compiled
}

// merge is what two groups of pods may by the same policy.
func merge(a, b []policy.Allow) []policy.Allow {
	if len(b) == 0 {
		return a
	}
	out := slices.Clone(a)
	for _, more := range b {
		i := slices.IndexFunc(out, func(have policy.Allow) bool { return have.Name == more.Name })
		if i < 0 {
			out = append(out, more)
			continue
		}
		subjects := slices.Concat(out[i].Subjects, more.Subjects)
		slices.SortFunc(subjects, netip.Addr.Compare)
		out[i].Subjects = slices.Compact(subjects)
	}
	return out
}

// write brings work to where it belongs, and reports whether the rules are in the switch.
func (t *Table) write(ctx context.Context, w work, compiled map[policy.Key]policy.Compiled, found reached) (ruled bool, err error) {
	t.learnDenying(compiled)
	t.noteTooLarge(compiled)
	if w.expected {
		t.makeReady(w, compiled)
		return false, wrap(flowstore.ErrNotReady)
	}
	whole := w.certain && (t.complete || w.open)
	outside := make(chan error, 1)
	go func() { outside <- t.tellOutside(ctx, w, found, whole) }()
	ruled, err = t.writeSwitch(ctx, w, compiled)
	return ruled, errors.Join(err, <-outside)
}

// writeSwitch brings work into the switch, and reports whether the rules are there. What both old and
// new allow loses nothing: rules that come are first, then what selects pods, then rules that go.
// Those of ClusterNetworkPolicies change at once, with the first: what selects their pods decides
// nothing by itself.
func (t *Table) writeSwitch(ctx context.Context, w work, compiled map[policy.Key]policy.Compiled) (ruled bool, err error) {
	var errs []error
	// What does not fit into one bundle would lose for a while what both old and new allow.
	if many := t.many(compiled); t.complete && (w.news || many) {
		errs = append(errs, t.set(ctx, t.come(compiled)))
	}
	if w.news {
		errs = append(errs, t.tellPods(ctx, w.pods, w.whose))
	}
	var rules error
	if t.complete {
		if owners := t.rules.Set(compiled); len(owners) > 0 || t.behind {
			rules = t.set(ctx, owners)
		}
	} else {
		t.take(compiled)
		if !w.open && !(w.denies && t.isEmpty(ctx)) {
			return false, errors.Join(append(errs, flowstore.ErrNotReady)...)
		}
		rules = t.first(ctx)
	}
	t.unselect(t.same(w.unselected, w.whose))
	return rules == nil, errors.Join(append(errs, rules, t.flush(ctx, w))...)
}

// take has rules become what they come to, while the store knows of none.
func (t *Table) take(compiled map[policy.Key]policy.Compiled) {
	if t.rules.Take(compiled) {
		t.ready = nil
	}
}

// makeReady makes all rules, where all is known that they follow from: that takes as long as much else that a
// starting node does.
func (t *Table) makeReady(w work, compiled map[policy.Key]policy.Compiled) {
	if t.take(compiled); w.open && t.ready == nil {
		t.ready = t.rules.All()
	}
}

// come has the rules that come beside those that go, and ClusterNetworkPolicies as they are now.
func (t *Table) come(compiled map[policy.Key]policy.Compiled) []pipeline.RuleOwner {
	cluster, others := map[policy.Key]policy.Compiled{}, maps.Clone(compiled)
	if c, changed := compiled[clusterKey]; changed {
		cluster[clusterKey] = c
		delete(others, clusterKey)
	}
	// Who changes in both is named last as it is then.
	return append(t.rules.Set(cluster), t.rules.Add(others)...)
}

// isEmpty reports whether the switch has no rules from before. Nothing is lost then by those that
// lack what is late, and without them nothing would be denied.
func (t *Table) isEmpty(ctx context.Context) bool {
	if !t.looked {
		found, err := t.cfg.Store.Read(ctx, AreaName)
		t.empty, t.looked = len(found) == 0, err == nil
	}
	return t.looked && t.empty
}

// first tells the store of all rules.
func (t *Table) first(ctx context.Context) error {
	var c flowstore.Change
	c.All(slices.Collect(maps.Values(kinds))...)
	all := t.ready
	if t.ready = nil; all == nil {
		all = t.rules.All()
	}
	put(&c, all)
	r, err := t.cfg.Store.Set(ctx, c)
	t.complete, t.behind = true, err != nil
	if err == nil && len(all) > 0 && len(r.Found) == 0 {
		t.Forgotten() // nothing is there from before, so nobody's connections are known
	}
	return wrap(err)
}

// set gives the store what some owners want now.
func (t *Table) set(ctx context.Context, owners []pipeline.RuleOwner) (err error) {
	if len(owners) == 0 {
		if !t.behind {
			return nil
		}
		_, err = t.cfg.Store.Resync(ctx, AreaName)
	} else {
		var c flowstore.Change
		put(&c, owners)
		_, err = t.cfg.Store.Set(ctx, c)
	}
	t.behind = err != nil
	return wrap(err)
}

func put(c *flowstore.Change, owners []pipeline.RuleOwner) {
	for _, o := range owners {
		c.Set(flowstore.Owner{Kind: kinds[o.Kind], Name: o.Name}, flowstore.Want{Flows: o.Flows})
	}
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("policies: %w", err)
}

// finish notes what came of work.
func (t *Table) finish(w work, ruled bool, err error) {
	size := t.cfg.Store.Size(AreaName)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.why = err
	now := t.cfg.Now()
	if ruled {
		t.ruled = w.asked
	}
	if err == nil {
		t.done = w.asked
		if !w.since.IsZero() {
			t.cfg.Metrics.eventToFlows.Observe(now.Sub(w.since).Seconds())
		}
	} else if !w.since.IsZero() {
		t.since = w.since
	}
	t.measure(size)
	close(t.settled)
	t.settled = make(chan struct{})
}

// next is how long nothing has to be done, if nothing changes.
func (t *Table) next() time.Duration {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.cfg.Now()
	wait := time.Hour
	at := func(due time.Time) {
		if !due.IsZero() {
			wait = min(wait, max(due.Sub(now), 0))
		}
	}
	if !t.cluster.late.IsZero() {
		at(t.cluster.late.Add(policiesLate))
	}
	for _, s := range t.spaces {
		if !s.late.IsZero() {
			at(s.late.Add(policiesLate))
		}
		for n := range s.olds {
			at(s.policies[n].since.Add(policiesLate))
		}
	}
	for _, one := range t.pods {
		if one.given.Midstream {
			at(one.midstream)
		}
		if !one.since.IsZero() {
			at(one.since.Add(policiesLate))
		}
	}
	for _, f := range t.flushes {
		at(f.due)
	}
	if t.told && !t.complete {
		at(t.started.Add(wholeAtMost))
	}
	if !t.labelsKnown(now) {
		at(t.started.Add(labelsAtMost))
	}
	at(t.keepDue)
	return wait
}

// publish tells what the node says of its pods, where that changed; mu is held. Where there
// have been no policies for long that is nothing, whatever comes and goes.
func (t *Table) publish() {
	r := topology.NodePods{Host: t.cfg.Host, HostIP: t.cfg.HostIP, Pods: []topology.NodePod{}}
	now := t.cfg.Now()
	if t.any() {
		t.tellUntil = now.Add(tellFor)
	}
	if now.Before(t.tellUntil) {
		r.Pods = t.list()
	}
	if t.cfg.Publish != nil && !reflect.DeepEqual(r, t.published) {
		t.published = r
		t.cfg.Publish(r)
	}
}
