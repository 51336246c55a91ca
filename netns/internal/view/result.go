package view

import (
	"github.com/k8s-ovs/k8s-ovs/netns/internal/plan"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// What became of a request.
const (
	// Done: carried out, and every live node has it in its flows.
	Done = "done"
	// NothingToDo: the records say so already; nothing was written.
	NothingToDo = "nothingToDo"
	// WouldChange: a dry run; nothing was written.
	WouldChange = "wouldChange"
	// Requested: written, and not waited for.
	Requested = "requested"
	// Refused: the controller did not carry it out; Message says why.
	Refused = "refused"
	// Withdrawn: no controller took it in time, so it was taken back.
	Withdrawn = "withdrawn"
	// Lagging: carried out, but not every live node has it in its flows in time.
	Lagging = "lagging"
	// Confirmed: an address is confirmed as a node's.
	Confirmed = "confirmed"
	// Unknown: waiting ended before it was clear; the request may stand.
	Unknown = "unknown"
)

// Result is what `netns join`, `isolate` and `global` say.
type Result struct {
	Action    topology.Action `json:"action"`
	Namespace string          `json:"namespace"`
	// Target is the namespace to join; empty for other actions.
	Target string `json:"target"`
	DryRun bool   `json:"dryRun"`
	// Result is done, nothingToDo, wouldChange, requested, refused, withdrawn,
	// lagging or unknown.
	Result string `json:"result"`
	// Message is the result in words.
	Message string `json:"message"`
	// Notes say what may surprise.
	Notes []string `json:"notes"`
	// Gains and Loses are the namespaces that namespace newly, or no longer,
	// reaches and is reached by.
	Gains []string `json:"gains"`
	Loses []string `json:"loses"`
	// NetID and NetworkWith are what namespace has after it; null and empty
	// where it was not carried out.
	NetID       *netid.ID `json:"netID"`
	NetworkWith []string  `json:"networkWith"`
	// Revision is the etcd revision of the record with the change; 0 where it
	// was not carried out.
	Revision int64 `json:"revision"`
	// Nodes says how far the change is in the flows; null where it was not waited for.
	Nodes *Progress `json:"nodes"`
}

// NewResult begins the result of a plan.
func NewResult(p plan.Plan) Result {
	return Result{
		Action:      p.Request.Action,
		Namespace:   p.Request.Namespace,
		Target:      p.Request.Target,
		Notes:       orEmpty(p.Notes),
		Gains:       orEmpty(p.Change.Gains),
		Loses:       orEmpty(p.Change.Loses),
		NetworkWith: []string{},
	}
}

// Confirmation is what `netns nodes confirm` says.
type Confirmation struct {
	Node    string `json:"node"`
	Address string `json:"address"`
	// Result is confirmed, nothingToDo or withdrawn.
	Result string `json:"result"`
	// Message is the result in words.
	Message string `json:"message"`
}
