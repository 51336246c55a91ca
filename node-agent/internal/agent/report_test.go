package agent

import "testing"

// Memory that the start needed is given back once, when what is done beside the first pass is over too.
func TestGiveBack(t *testing.T) {
	given := 0
	r := &reporter{shrink: func() error { given++; return nil }, log: quiet()}
	for i, tt := range []struct {
		full bool
		want int
	}{{true, 0}, {false, 0}, {true, 1}, {false, 1}, {true, 1}} {
		if err := r.giveBack(t.Context(), &pass{full: tt.full}); err != nil || given != tt.want {
			t.Errorf("pass %d: it was given back %d times (%v), want %d", i, given, err, tt.want)
		}
	}
}
