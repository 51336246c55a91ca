package topology

import (
	"encoding/json"
	"strings"
	"time"
)

// Outcome says what became of a request, in one word. More may come: whoever does not
// know one shows the message.
type Outcome string

const (
	// Done: it was carried out.
	Done Outcome = "done"
	// Unchanged: it asked for what was so already.
	Unchanged Outcome = "unchanged"
	// Refused: it cannot be carried out and was cleared.
	Refused Outcome = "refused"
	// Waiting: it cannot be carried out yet and still stands.
	Waiting Outcome = "waiting"
	// Withdrawn: whoever had made it, or somebody else, took it back.
	Withdrawn Outcome = "withdrawn"
	// Confirmed: an operator said that the address is the node's.
	Confirmed Outcome = "confirmed"
	// Misfit: the record stands, and does not fit the network configuration.
	Misfit Outcome = "misfit"
)

// Status is what there is to say about the last request in a record.
type Status struct {
	// Outcome is empty where only Message says what became of it.
	Outcome Outcome `json:"Outcome,omitempty"`
	Message string  `json:"Message"`
	// Request is what it is about, as [Namespace.Request]; empty where that was no action, or the controller does not say.
	Request string `json:"Request,omitempty"`
	// By is who asked, as [Namespace.By]; empty where that is not known.
	By   string    `json:"By,omitempty"`
	Time time.Time `json:"Time"`
}

// prefixes are how a message begins in records of controllers that wrote no Outcome.
var prefixes = map[string]Outcome{"refused: ": Refused, "waiting: ": Waiting, "nothing to do: ": Unchanged, "does not fit the network configuration: ": Misfit}

// UnmarshalJSON reads the time in UTC. Go reads times that it refuses to write,
// such as one at +24:00: a record with one could never be written again. It is also
// the one place where an outcome is read from a message, which is what records of
// older controllers have.
func (s *Status) UnmarshalJSON(data []byte) error {
	type plain Status
	var p plain
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	if p.Time = p.Time.UTC(); p.Time.Year() < 0 || p.Time.Year() > 9999 {
		p.Time = time.Time{}
	}
	*s = Status(p)
	if s.Outcome != "" {
		return nil
	}
	for prefix, outcome := range prefixes {
		if strings.HasPrefix(s.Message, prefix) {
			s.Outcome = outcome
		}
	}
	return nil
}

// CarriedOut reports whether it says that this request was carried out, or asked for what was so already.
func (s *Status) CarriedOut(request string) bool {
	return (s.Is(Done) || s.Is(Unchanged)) && s.Request == request
}

// Is reports whether o is the outcome; false where there is no Status.
func (s *Status) Is(o Outcome) bool { return s != nil && s.Outcome == o }
