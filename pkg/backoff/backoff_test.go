package backoff

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestPauses: they double up to the last, and begin anew after a success.
func TestPauses(t *testing.T) {
	for range 100 { // whatever the jitter is
		p := Pauses{First: 100 * time.Millisecond, Last: 350 * time.Millisecond}
		for i, want := range []time.Duration{100, 200, 350, 350, 0, 100, 200} {
			if want == 0 {
				p.Reset()
				continue
			}
			want *= time.Millisecond
			if got := p.Next(); got < want/2 || got > want*3/2 {
				t.Fatalf("pause %d is %s, want %s, from half of it to half as much again", i, got, want)
			}
		}
	}
}

// TestJitter: two who fail together do not come back together.
func TestJitter(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 20 {
		p := Pauses{First: time.Second, Last: time.Minute}
		seen[p.Next()] = true
	}
	if len(seen) < 15 {
		t.Errorf("20 first pauses have only %d lengths", len(seen))
	}
}

// TestWait: it takes as long as the pause, and less where ctx ends.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := Pauses{First: time.Second, Last: time.Minute}
		began := time.Now()
		if !p.Wait(t.Context()) {
			t.Error("it says that ctx ended")
		}
		if took := time.Since(began); took < time.Second/2 || took > 3*time.Second/2 {
			t.Errorf("the first pause took %s, want about 1s", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		began = time.Now()
		if p.Wait(ctx) {
			t.Error("it does not say that ctx ended")
		}
		if took := time.Since(began); took != time.Millisecond {
			t.Errorf("it took %s until the end of ctx was noticed, want 1ms", took)
		}
	})
}

func TestTrouble(t *testing.T) {
	var trouble Trouble
	if trouble.Over() {
		t.Error("there is trouble before any error")
	}
	var got []bool
	for _, err := range []error{
		errors.New("away"), errors.New("away"), errors.New("full"), fmt.Errorf("%w", errors.New("full")), errors.New("away"),
		nil, nil, errors.New("away"),
	} {
		got = append(got, trouble.News(err))
	}
	if diff := cmp.Diff([]bool{true, false, true, false, true, false, false, true}, got); diff != "" {
		t.Errorf("what is news (-want +got):\n%s", diff)
	}
	if over := []bool{trouble.Over(), trouble.Over(), trouble.News(errors.New("away"))}; !cmp.Equal(over, []bool{true, false, true}) {
		t.Errorf("over, over again, and news after it: %t; want true, false, true", over)
	}
}
