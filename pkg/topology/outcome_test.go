package topology

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestStatus: records of older controllers, which had no Outcome, say it in their
// message; whoever writes an outcome is believed.
func TestStatus(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for data, want := range map[string]Status{
		`{"Message":"refused: x","Time":"2026-01-02T03:04:05Z"}`:                                           {Outcome: Refused, Message: "refused: x", Time: at},
		`{"Message":"waiting: x","Time":"2026-01-02T03:04:05Z"}`:                                           {Outcome: Waiting, Message: "waiting: x", Time: at},
		`{"Message":"nothing to do: x","Time":"2026-01-02T03:04:05Z"}`:                                     {Outcome: Unchanged, Message: "nothing to do: x", Time: at},
		`{"Message":"does not fit the network configuration: x","Time":"2026-01-02T03:04:05Z"}`:            {Outcome: Misfit, Message: "does not fit the network configuration: x", Time: at},
		`{"Message":"refusedly","Time":"2026-01-02T03:04:05Z"}`:                                            {Message: "refusedly", Time: at},
		`{"Outcome":"done","Message":"refused: not","By":"alice@desk","Time":"2026-01-02T04:04:05+01:00"}`: {Outcome: Done, Message: "refused: not", By: "alice@desk", Time: at},
		`{"Outcome":"later","Message":"refused: x","Color":"red","Time":"2026-01-02T03:04:05Z"}`:           {Outcome: "later", Message: "refused: x", Time: at},
	} {
		var got Status
		if err := json.Unmarshal([]byte(data), &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", data, diff)
		}
	}
	if none := (*Status)(nil); none.Is(Refused) || none.Is("") {
		t.Error("no Status has an outcome")
	}
}
