package hostnet

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"sigs.k8s.io/knftables"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
)

const (
	// judgeTable is the name of the table that drops what policies do not let pods send.
	judgeTable = "k8s-ovs-policy"
	judgeMap   = "senders"
	// The names of its chains for pods, and for ports, begin with these; then comes what their rules
	// come to, so that a chain of one name has one meaning.
	judgeTo, judgePorts = "to-", "ports-"
)

// DeniedEgress is what policies do not let a pod send: [Judge] counts it.
const DeniedEgress Reason = "policy-egress"

// Judge drops what pods send to an address that the node translates, and what is answered, where
// policies do not let the pod reach the address that this comes to. What is translated to a pod's comes
// to the switch once more, which judges it. One goroutine may use it at a time, and another
// [Judge.Dropped].
type Judge struct {
	ns  *link.NS
	nft knftables.Interface
	// has is what the table is known to have; nil where it is to be read.
	has     *judgeState
	counted uint64
	// there is that a table was seen, or made; tells that the agent hears of what is dropped.
	there, tells atomic.Bool
}

// Senders are pods that policies do not let send everything.
type Senders struct {
	// Services is the service network where the node's proxy serves it, else the zero value.
	Services netip.Prefix
	// Reach is what each of them may reach.
	Reach map[netip.Addr]policy.Reach
	// Keep, if not nil, says which pods go on with what the table has of them, be it nothing.
	Keep func(pod netip.Addr) bool
}

// judgeState is what the table has: the comments of its rules, by chain, and the chain of each pod.
type judgeState struct {
	base, chains map[string][]string
	senders      map[netip.Addr]string
}

// NewJudge makes a Judge for the node's namespace.
func NewJudge(ns *link.NS) (*Judge, error) {
	nft, err := openTable(ns, family, judgeTable)
	if err != nil {
		return nil, err
	}
	return &Judge{ns: ns, nft: nft}, nil
}

// Set makes want what pods may send, at once. Where nobody is to be judged there is no table. It
// writes only what differs from what it wrote last; see [Judge.Forget].
func (j *Judge) Set(ctx context.Context, want Senders) error {
	return j.run("writing", func() error {
		have, err := j.state(ctx)
		if err != nil {
			return err
		}
		base := judgeBase(want.Services)
		next := judgeState{base: comments(base)}
		// With a table of another version nobody can go on.
		keeps := want.Keep != nil && (have.base == nil || next.sameBase(have))
		if keeps {
			want.Reach = maps.Clone(want.Reach)
			maps.DeleteFunc(want.Reach, func(a netip.Addr, _ policy.Reach) bool { return want.Keep(a) })
		}
		made := judgeChains(want.Reach, j.tells.Load())
		next.chains, next.senders = made.comments(), made.senders
		if keeps {
			next.keep(have, want.Keep)
		}
		tx := j.nft.NewTransaction()
		if len(next.senders) == 0 {
			next = judgeState{}
			if have.base != nil {
				tx.Add(&knftables.Table{})
				tx.Delete(&knftables.Table{})
			}
		} else {
			if !have.agrees(next) {
				have = judgeState{}
				beginJudge(tx, base)
			}
			change(tx, have, next, made)
		}
		j.has = nil
		if tx.NumOperations() > 0 {
			if err := j.nft.Run(ctx, tx); err != nil {
				return err
			}
		}
		j.has = &next
		j.there.Store(next.base != nil)
		return nil
	})
}

// Forget has the next Set read the table, as others may have changed it.
func (j *Judge) Forget() { j.has = nil }

// Dropped is how many packets were dropped since it was last asked. It costs nothing where nobody is
// judged.
func (j *Judge) Dropped(ctx context.Context) (n uint64, err error) {
	total, err := j.Total(ctx)
	if err != nil {
		return 0, err
	}
	last := j.counted
	if n, j.counted = total, total; last <= n { // else the table was made anew
		n -= last
	}
	return n, nil
}

// Total is how many packets were dropped since the table was made. It may be called at any time.
func (j *Judge) Total(ctx context.Context) (n uint64, err error) {
	if !j.there.Load() {
		return 0, nil
	}
	err = j.run("reading", func() error {
		counters, err := j.nft.ListCounters(ctx)
		if err != nil && !knftables.IsNotFound(err) {
			return err
		}
		for _, c := range counters {
			if c.Name == string(DeniedEgress) {
				n = *c.Packets
			}
		}
		return nil
	})
	return n, err
}

// Remove deletes the table. It is for uninstalling.
func (j *Judge) Remove(ctx context.Context) error {
	j.Forget()
	return j.Set(ctx, Senders{})
}

func (j *Judge) run(doing string, fn func() error) error {
	if err := j.ns.Do(fn); err != nil {
		return fmt.Errorf("firewall table %s: %s: %w", judgeTable, doing, err)
	}
	return nil
}

// state is what the table has.
func (j *Judge) state(ctx context.Context) (s judgeState, err error) {
	if j.has != nil {
		return *j.has, nil
	}
	rules, err := j.nft.ListRules(ctx, "")
	if knftables.IsNotFound(err) {
		return judgeState{}, nil
	}
	if err != nil {
		return judgeState{}, err
	}
	s = judgeState{map[string][]string{}, map[string][]string{}, map[netip.Addr]string{}}
	for _, r := range rules {
		in := s.base
		if strings.HasPrefix(r.Chain, judgeTo) || strings.HasPrefix(r.Chain, judgePorts) {
			in = s.chains
		}
		text := ""
		if r.Comment != nil {
			text = *r.Comment
		}
		in[r.Chain] = append(in[r.Chain], text)
	}
	elements, err := j.nft.ListElements(ctx, "map", judgeMap)
	if knftables.IsNotFound(err) {
		return judgeState{base: map[string][]string{}}, nil // no table of ours
	}
	if err != nil {
		return judgeState{}, err
	}
	for _, e := range elements {
		a, err := netip.ParseAddr(e.Key[0])
		if err != nil {
			return judgeState{}, err
		}
		s.senders[a] = strings.TrimPrefix(e.Value[0], "goto ")
	}
	return s, nil
}

// sameBase reports whether the rules for all pods are the same.
func (s judgeState) sameBase(other judgeState) bool {
	return maps.EqualFunc(s.base, other.base, slices.Equal)
}

// keep has s go on with what some pods have.
func (s *judgeState) keep(have judgeState, keep func(netip.Addr) bool) {
	for a, to := range have.senders {
		if keep(a) {
			s.senders[a] = to
		}
	}
	for name, texts := range have.chains {
		if _, made := s.chains[name]; !made {
			s.chains[name] = texts
		}
	}
}

// agrees reports whether a table that has s can become next by what differs in names.
func (s judgeState) agrees(next judgeState) bool {
	if !s.sameBase(next) {
		return false
	}
	for name, texts := range next.chains {
		if have, there := s.chains[name]; there && !slices.Equal(have, texts) {
			return false
		}
	}
	return true
}

// change makes of a table what is next. Chains come before who needs them, and go behind.
func change(tx *knftables.Transaction, have, next judgeState, made judged) {
	for _, c := range made.chains {
		if _, there := have.chains[c.name]; !there {
			if made.tells {
				addTold(tx)
			}
			addChain(tx, c, next.chains[c.name])
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(have.senders), netip.Addr.Compare) {
		if have.senders[a] != next.senders[a] {
			tx.Delete(&knftables.Element{Map: judgeMap, Key: []string{a.String()}})
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(next.senders), netip.Addr.Compare) {
		if have.senders[a] != next.senders[a] {
			tx.Add(&knftables.Element{Map: judgeMap, Key: []string{a.String()}, Value: []string{"goto " + next.senders[a]}})
		}
	}
	names := slices.Sorted(maps.Keys(have.chains))
	for _, name := range slices.Backward(names) { // those of pods go to those of ports
		if _, stays := next.chains[name]; !stays {
			tx.Delete(&knftables.Chain{Name: name})
		}
	}
}

// beginJudge makes the table without any pod, whatever it was.
func beginJudge(tx *knftables.Transaction, base []chain) {
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Counter{Name: string(DeniedEgress)})
	tx.Add(&knftables.Map{Name: judgeMap, Type: "ipv4_addr : verdict"})
	texts := comments(base)
	for _, c := range base {
		addChain(tx, c, texts[c.name])
	}
}

// judgeBase are the rules for all pods. They look at the connection and not at the packet, so that
// requests, answers and errors about either are judged alike: its first packet came from a pod, and
// its answers come from where the node's translation sends it. Only what the node has translated is
// looked at: the switch has judged the rest. What ipvs translates does not say that it is; it comes
// out of the node as if that had made it, and without a connection it is dropped.
func judgeBase(services netip.Prefix) []chain {
	const judge = "ct original ip saddr vmap @" + judgeMap
	all := []rule{{[]any{"ct status dnat", judge}, "what the node translates for pods"}}
	var sent []rule
	if services.IsValid() {
		all = append(all, rule{[]any{fmt.Sprintf("ct original ip daddr %s ct reply ip saddr != %s", services, services), judge}, "what ipvs does"})
		sent = append(sent, rule{[]any{"ip saddr vmap @" + judgeMap}, "what ipvs sends on"})
	}
	var out []chain
	for _, c := range []chain{
		{name: "forward", hook: knftables.ForwardHook, rules: all},
		{name: "input", hook: knftables.InputHook, rules: all},
		{name: "output", hook: knftables.OutputHook, rules: slices.Concat(all, sent)},
	} {
		c.kind, c.priority = knftables.FilterType, late
		out = append(out, c)
	}
	return out
}

// judged are the chains of pods, by what they may reach, behind those that they need, and which pod
// has which.
type judged struct {
	chains  []chain
	senders map[netip.Addr]string
	known   map[string]bool
	// tells says that the agent hears of what they drop.
	tells bool
}

// judgeChains are those that some pods need.
func judgeChains(reach map[netip.Addr]policy.Reach, tells bool) judged {
	j := judged{senders: map[netip.Addr]string{}, known: map[string]bool{}, tells: tells}
	shared := map[*policy.Span]string{} // many pods have one
	for _, a := range slices.SortedFunc(maps.Keys(reach), netip.Addr.Compare) {
		r := reach[a]
		name, ok := shared[&r[0]]
		if !ok {
			name = j.to(r)
			shared[&r[0]] = name
		}
		j.senders[a] = name
	}
	return j
}

func (j judged) comments() map[string][]string {
	out := map[string][]string{}
	for _, c := range j.chains {
		out[c.name] = comments([]chain{c})[c.name]
	}
	return out
}

// drop ends each chain of pods, and of ports.
var drop = rule{[]any{fmt.Sprintf("counter name %q drop", DeniedEgress)}, "no policy allows it, or one denies it"}

// to adds the chain of pods that may reach r, and returns its name.
func (j *judged) to(r policy.Reach) string {
	var choices []string
	for _, s := range r {
		switch {
		case s.Ports.None():
			continue
		case s.Ports.All():
			choices = append(choices, addressRange(s)+" : accept")
		default:
			choices = append(choices, addressRange(s)+" : goto "+j.ports(s.Ports))
		}
	}
	return j.add(judgeTo, []rule{{[]any{"ct reply ip saddr vmap {", strings.Join(choices, ", "), "}"}, "by where it ends"}})
}

// ports adds the chain of these, and returns its name.
func (j *judged) ports(p policy.Ports) string {
	var rules []rule
	byProtocol := map[string][]string{}
	for _, r := range p.Ranges {
		name := strings.ToLower(r.Protocol.String())
		byProtocol[name] = append(byProtocol[name], portRange(r)+" : accept")
	}
	for _, name := range slices.Sorted(maps.Keys(byProtocol)) {
		rules = append(rules, rule{[]any{"ct original protocol", name, "ct reply proto-src vmap {", strings.Join(byProtocol[name], ", "), "}"}, name})
	}
	if p.Others {
		rules = append(rules, rule{[]any{"ct original protocol != { tcp, udp, sctp } accept"}, "other protocols"})
	}
	return j.add(judgePorts, rules)
}

// add adds a chain, once, under a name that says what is in it. What comes to its end is dropped.
func (j *judged) add(prefix string, rules []rule) string {
	if j.tells {
		rules = append(rules, tell)
	}
	rules = append(rules, drop)
	h := sha256.New()
	for _, r := range rules {
		fmt.Fprintln(h, knftables.Concat(r.match...))
	}
	name := fmt.Sprintf("%s%x", prefix, h.Sum(nil)[:8])
	if !j.known[name] {
		j.known[name] = true
		j.chains = append(j.chains, chain{name: name, rules: rules})
	}
	return name
}

func addressRange(s policy.Span) string {
	if s.First == s.Last {
		return s.First.String()
	}
	return s.First.String() + "-" + s.Last.String()
}

func portRange(r policy.PortRange) string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}
