package agent

import (
	"slices"
	"testing"
)

// Memory that the start needed is given back after the first pass; later, passes that read back all there is look again.
func TestGiveBack(t *testing.T) {
	var given []bool
	r := &reporter{shrink: func(begun bool) error { given = append(given, begun); return nil }, log: quiet()}
	for i, tt := range []struct {
		full bool
		want []bool
	}{{true, []bool{false}}, {false, []bool{false}}, {true, []bool{false, true}}, {false, []bool{false, true}}, {true, []bool{false, true, true}}} {
		if err := r.giveBack(t.Context(), &pass{full: tt.full}); err != nil || !slices.Equal(given, tt.want) {
			t.Errorf("pass %d: it was given back %v (%v), want %v", i, given, err, tt.want)
		}
	}
}
